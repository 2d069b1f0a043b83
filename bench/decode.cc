// Decode and prefill end to end, in one process, through the engine's own interface: what one user and what
// sixteen get. Beside each decode figure stands its floor: bytes of weights and factors a token, at the read
// bandwidth that the same threads reach over a buffer of that size. The machine is rarely alone and its
// bandwidth drifts within seconds, so every repeat takes what it is held against just before and just after
// the figure, the share is the median of the repeats' own shares, and their range is printed too. Beside a
// figure stands also what moved it: how often the cores lay under different caches (a cache line's way from
// one to the other and back tells), with the share in either state, and what others took of the cores.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/ceiling.h"
#include "bench/machine_watch.h"
#include "bench/peak_flops.h"
#include "engine/base/page_tokens.h"
#include "engine/engine.h"

namespace t6::bench {
namespace {

struct Options {
  std::string model = "models/t6-docqa-14m";
  std::string dtype = "bf16";
  std::string device = "auto";
  std::string only;  // a part of the figures' names
  int threads = 2;
  int repeats = 9;
};

constexpr int kNewTokens = 200, kWindow = 10;

class Bench {
 public:
  Bench(Engine* engine, const Options& options) : engine_(engine), options_(options), random_(1) {}

  std::vector<int32_t> RandomPrompt(int n) {
    std::vector<int32_t> prompt(n);
    for (int32_t& id : prompt) id = static_cast<int32_t>(random_() % (engine_->info().vocab_size - 16)) + 8;
    return prompt;
  }

  // Computes the prompt that streams start from.
  void Cache(std::vector<int32_t> prompt) {
    prompt_ = std::move(prompt);
    if (prompt_.size() > 1) Run(prompt_, 1);  // its factors are cached from now on
  }

  // Tokens a second of `n` streams on the cached prompt, once all have their first token: the median of
  // windows of kWindow tokens, as the floor is a median of passes, so that whoever else takes a core for a
  // moment counts in neither.
  double Decode(int n) {
    std::vector<std::shared_ptr<EventStream>> streams;
    for (int i = 0; i < n; ++i) streams.push_back(Submit(prompt_, kNewTokens));
    for (auto& stream : streams) Await(*stream, 1);
    // Every step gives each of them a token, so that one tells the time of all.
    std::vector<double> rates;
    double start = Seconds();
    int in_window = 0;
    Await(*streams[0], kNewTokens, [&](int tokens) {
      if ((in_window += tokens) < kWindow) return;
      const double now = Seconds();
      rates.push_back(n * in_window / (now - start));
      start = now, in_window = 0;
    });
    for (int i = 1; i < n; ++i) Await(*streams[i], kNewTokens);
    return Median(rates);
  }

  double PrefillSeconds(int n) {
    const std::vector<int32_t> prompt = RandomPrompt(n);
    const double start = Seconds();
    Run(prompt, 1);
    return Seconds() - start;
  }

 private:
  std::shared_ptr<EventStream> Submit(const std::vector<int32_t>& prompt, int max_tokens) {
    GenerationRequest request;
    request.prompt = prompt;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    auto stream = engine_->Submit(std::move(request));
    T6_CHECK(stream.ok(), "{}", stream.status().ToString());
    return *stream;
  }

  // Reads at least `n` tokens, or all that come, and tells of each event how many it brought.
  template <typename Read>
  void Await(EventStream& stream, int n, const Read& read) {
    int got = 0;
    TokenEvent event;
    while (got < n) {
      T6_CHECK(stream.Wait(&event, absl::Seconds(120)), "no token within two minutes");
      T6_CHECK(event.status.ok(), "{}", event.status.ToString());
      got += static_cast<int>(event.tokens.size());
      read(static_cast<int>(event.tokens.size()));
      if (event.finish != FinishReason::kNone) break;
    }
  }
  void Await(EventStream& stream, int n) {
    Await(stream, n, [](int /*tokens*/) {});
  }

  void Run(const std::vector<int32_t>& prompt, int n) { Await(*Submit(prompt, n), n + 1); }

  Engine* engine_;
  Options options_;
  std::mt19937 random_;
  std::vector<int32_t> prompt_;
};

// What the repeats gave: the middle one, and how far they lie apart.
struct Spread {
  explicit Spread(const std::vector<double>& values)
      : median(Median(values)),
        least(*std::min_element(values.begin(), values.end())),
        most(*std::max_element(values.begin(), values.end())) {}
  double median, least, most;
};

// Ratios by the state of the machine that each repeat met.
struct Ratios {
  std::vector<double> all, together, apart;

  void Add(double ratio, bool cores_apart) {
    all.push_back(ratio);
    (cores_apart ? apart : together).push_back(ratio);
  }
  // "; together 57, apart 46" where there were both.
  std::string ByState(int decimals) const {
    if (together.empty() || apart.empty()) return "";
    return fmt::format("; together {:.{}f}, apart {:.{}f}", Median(together), decimals, Median(apart),
                       decimals);
  }
};

class Figures {
 public:
  Figures(Engine* engine, const Options& options)
      : info_(engine->info()),
        options_(options),
        bench_(engine, options),
        weights_(static_cast<double>(info_.n_parameters) * (options.dtype == "f32" ? 4 : 2)) {}

  void OneStream(const char* name, int context) {
    if (!Wanted(name)) return;
    const double token = static_cast<double>(info_.memory.page_bytes) / kPageTokens;
    const double bytes = weights_ + token * (context + 0.5 * kNewTokens);
    ReadCeiling ceiling(static_cast<size_t>(bytes), options_.threads);
    MachineWatch watch(options_.threads);
    std::vector<double> rates, floors;
    Ratios shares;
    for (int i = 0; i < options_.repeats; ++i) {
      bench_.Cache(bench_.RandomPrompt(std::max(context, 1)));
      const bool apart = watch.CoresApart();
      const double before = ceiling.BytesPerSecond() / bytes;
      rates.push_back(bench_.Decode(1));
      const double after = ceiling.BytesPerSecond() / bytes;
      floors.push_back((before + after) / 2);
      shares.Add(100 * rates.back() / floors.back(), apart);
    }
    const Spread share(shares.all), rate(rates);
    fmt::print(
        "{:<36} {:>6.0f} tok/s ({:.0f} to {:.0f})   floor {:>6.0f} tok/s ({:.1f} MB a token)   {:>3.0f} % of "
        "it ({:.0f} to {:.0f}{}){}\n",
        name, rate.median, rate.least, rate.most, Median(floors), bytes / 1e6, share.median, share.least,
        share.most, shares.ByState(0), watch.Report());
  }

  void SixteenStreams(const char* name, int context) {
    if (!Wanted(name)) return;
    MachineWatch watch(options_.threads);
    std::vector<double> ones, sixteens;
    Ratios ratios;
    for (int i = 0; i < options_.repeats; ++i) {
      bench_.Cache(bench_.RandomPrompt(context));
      const bool apart = watch.CoresApart();
      const double before = bench_.Decode(1);
      sixteens.push_back(bench_.Decode(16));
      ones.push_back((before + bench_.Decode(1)) / 2);
      ratios.Add(sixteens.back() / ones.back(), apart);
    }
    const Spread ratio(ratios.all), sixteen(sixteens);
    fmt::print(
        "{:<36} {:>6.0f} tok/s ({:.0f} to {:.0f})   {:.2f} x one stream's {:.0f} ({:.2f} to {:.2f}{}){}\n",
        name, sixteen.median, sixteen.least, sixteen.most, ratio.median, Median(ones), ratio.least,
        ratio.most, ratios.ByState(2), watch.Report());
  }

  void Prefill(const char* name, int n) {
    if (!Wanted(name)) return;
    // Every row passes the layers but the last, of which it needs a part that is not counted; one needs the
    // head.
    const auto layers = static_cast<double>(info_.n_parameters - int64_t{info_.vocab_size} * info_.width);
    const double row_flops = 2.0 * layers * (info_.n_layers - 1) / info_.n_layers;
    const double peak = PeakFlops(options_.dtype == "f32" ? DType::kF32 : DType::kBF16, options_.threads);
    MachineWatch watch(options_.threads);
    std::vector<double> times;
    for (int i = 0; i < options_.repeats; ++i) {
      watch.CoresApart();
      times.push_back(bench_.PrefillSeconds(n));
    }
    const Spread seconds(times);
    const double flops = row_flops * n / seconds.median;
    fmt::print(
        "{:<36} {:>6.0f} tok/s   {:.1f} ms ({:.1f} to {:.1f}); products alone {:.0f} GFLOP/s, {:.0f} % of "
        "the peak of {:.0f}{}\n",
        name, n / seconds.median, seconds.median * 1e3, seconds.least * 1e3, seconds.most * 1e3, flops / 1e9,
        100 * flops / peak, peak / 1e9, watch.Report());
  }

 private:
  bool Wanted(std::string_view name) const { return name.find(options_.only) != std::string_view::npos; }

  const ModelInfo& info_;
  const Options& options_;
  Bench bench_;
  double weights_;  // bytes
};

int Main(const Options& options) {
  EngineConfig config;
  config.model_directory = options.model;
  config.dtype = options.dtype;
  config.device = options.device;
  config.threads = options.threads;
  config.max_context = 8192;
  prometheus::Registry registry;
  EngineMetrics metrics(registry, "bench");
  auto engine = Engine::Create(config, &metrics);
  if (!engine.ok()) {
    fmt::print(stderr, "{}\n", engine.status().ToString());
    return 1;
  }
  const ModelInfo& info = (*engine)->info();
  fmt::print("{}: {:.1f} M parameters, {}, {}; medians of {}\n", options.model, info.n_parameters / 1e6,
             info.device, options.dtype, options.repeats);
  const auto print_round_trip = [] {
    fmt::print("there and back between two threads: {:.0f} ns\n", RoundTripSeconds() * 1e9);
  };
  if (options.threads > 1) print_round_trip();
  Figures figures(engine->get(), options);
  figures.OneStream("one stream, empty context", 0);
  figures.OneStream("one stream, 1024 tokens", 1024);
  figures.OneStream("one stream, 4096 tokens", 4096);
  figures.SixteenStreams("16 streams on one 1024-token prompt", 1024);
  figures.Prefill("prefill of 512 tokens", 512);
  figures.Prefill("prefill of 2048 tokens", 2048);
  if (options.threads > 1) print_round_trip();
  return 0;
}

}  // namespace
}  // namespace t6::bench

int main(int argc, char** argv) {
  t6::bench::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--model")
      options.model = value;
    else if (flag == "--dtype")
      options.dtype = value;
    else if (flag == "--device")
      options.device = value;
    else if (flag == "--threads")
      options.threads = std::atoi(value.c_str());
    else if (flag == "--only")
      options.only = value;
    else if (flag == "--repeats")
      options.repeats = std::atoi(value.c_str());
    else
      argc = 0;
  }
  if (argc % 2 == 0 || options.threads < 1 || options.repeats < 1) {
    fmt::print(
        stderr,
        "usage: decode [--model DIR] [--dtype bf16|f32] [--device auto|cpu] [--threads N] [--repeats N]\n"
        "              [--only PART_OF_A_NAME]\n");
    return 2;
  }
  return t6::bench::Main(options);
}
