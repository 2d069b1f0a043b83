// Decode and prefill end to end, in one process, through the engine's own interface: what one user and what
// sixteen get. Beside each decode figure stands its floor: bytes of weights and factors a token, at the read
// bandwidth that the same threads reach over a buffer of that size in the same run.
#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "bench/ceiling.h"
#include "bench/peak_flops.h"
#include "engine/engine.h"

namespace t6::bench {
namespace {

struct Options {
  std::string model = "models/t6-docqa-14m";
  std::string dtype = "bf16";
  std::string device = "auto";
  int threads = 2;
  int repeats = 5;
};

constexpr int kNewTokens = 200;

class Bench {
 public:
  Bench(Engine* engine, const Options& options) : engine_(engine), options_(options), random_(1) {}

  std::vector<int32_t> RandomPrompt(int n) {
    std::vector<int32_t> prompt(n);
    for (int32_t& id : prompt) id = static_cast<int32_t>(random_() % (engine_->info().vocab_size - 16)) + 8;
    return prompt;
  }

  // Tokens a second of `n` streams on one prompt, from the moment that all have their first token.
  double Decode(const std::vector<int32_t>& prompt, int n) {
    if (prompt.size() > 1) Run(prompt, 1);  // its factors are cached from now on
    std::vector<std::shared_ptr<EventStream>> streams;
    for (int i = 0; i < n; ++i) streams.push_back(Submit(prompt, kNewTokens));
    for (auto& stream : streams) Await(*stream, 1);
    const double start = Seconds();
    int tokens = 0;
    for (auto& stream : streams) tokens += Await(*stream, kNewTokens);
    return tokens / (Seconds() - start);
  }

  double PrefillSeconds(int n) {
    const std::vector<int32_t> prompt = RandomPrompt(n);
    const double start = Seconds();
    Run(prompt, 1);
    return Seconds() - start;
  }

  template <typename F>
  double MedianOf(F&& figure) {
    std::vector<double> values;
    for (int i = 0; i < options_.repeats; ++i) values.push_back(figure());
    return Median(values);
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

  // Reads at least `n` tokens, or all that come; returns how many.
  int Await(EventStream& stream, int n) {
    int got = 0;
    TokenEvent event;
    while (got < n) {
      T6_CHECK(stream.Wait(&event, absl::Seconds(120)), "no token within two minutes");
      T6_CHECK(event.status.ok(), "{}", event.status.ToString());
      got += static_cast<int>(event.tokens.size());
      if (event.finish != FinishReason::kNone) break;
    }
    return got;
  }

  void Run(const std::vector<int32_t>& prompt, int n) { Await(*Submit(prompt, n), n + 1); }

  Engine* engine_;
  Options options_;
  std::mt19937 random_;
};

void PrintDecode(const char* name, double tokens_per_second, double bytes, int threads) {
  const double floor = ReadBandwidth(static_cast<size_t>(bytes), threads) / bytes;
  fmt::print("{:<34} {:>9.0f} tok/s   floor {:>9.0f} tok/s ({:.1f} MB a token)   {:>4.0f} % of it\n", name,
             tokens_per_second, floor, bytes / 1e6, 100 * tokens_per_second / floor);
}

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
  const double weights = static_cast<double>(info.n_parameters) * (options.dtype == "f32" ? 4 : 2);
  const double token = static_cast<double>(info.memory.page_bytes) / 64;
  fmt::print("{}: {:.1f} M parameters, {}, {}\n", options.model, info.n_parameters / 1e6, info.device,
             options.dtype);

  Bench bench(engine->get(), options);
  const auto decode = [&](int context, int streams) {
    return bench.MedianOf([&] { return bench.Decode(bench.RandomPrompt(std::max(context, 1)), streams); });
  };
  PrintDecode("one stream, empty context", decode(0, 1), weights + token * kNewTokens / 2, options.threads);
  PrintDecode("one stream, 4096 tokens", decode(4096, 1), weights + token * (4096 + kNewTokens / 2),
              options.threads);
  const double one = decode(1024, 1);
  PrintDecode("one stream, 1024 tokens", one, weights + token * (1024 + kNewTokens / 2), options.threads);
  const double sixteen = decode(1024, 16);
  fmt::print("{:<34} {:>9.0f} tok/s   {:.2f} x one stream\n", "16 streams on one 1024-token prompt", sixteen,
             sixteen / one);
  // Every row passes the layers; only the last one needs the head.
  const double row_flops =
      2.0 * static_cast<double>(info.n_parameters - int64_t{info.vocab_size} * info.width);
  const double peak = PeakFlops(options.dtype == "f32" ? DType::kF32 : DType::kBF16, options.threads);
  for (int n : {512, 2048}) {
    const double seconds = bench.MedianOf([&] { return bench.PrefillSeconds(n); });
    const double flops = row_flops * n / seconds;
    fmt::print(
        "{:<34} {:>9.0f} tok/s   {:.1f} ms; products alone {:.0f} GFLOP/s, {:.0f} % of the peak of {:.0f}\n",
        fmt::format("prefill of {} tokens", n), n / seconds, seconds * 1e3, flops / 1e9, 100 * flops / peak,
        peak / 1e9);
  }
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
    else if (flag == "--repeats")
      options.repeats = std::atoi(value.c_str());
    else
      argc = 0;
  }
  if (argc % 2 == 0 || options.threads < 1 || options.repeats < 1) {
    fmt::print(
        stderr,
        "usage: decode [--model DIR] [--dtype bf16|f32] [--device auto|cpu] [--threads N] [--repeats N]\n");
    return 2;
  }
  return t6::bench::Main(options);
}
