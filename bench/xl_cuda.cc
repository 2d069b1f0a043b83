// T6-XL's steps on a GPU, or a checkpoint's, through the backend that the engine uses, on random factors.
// Beside a decode step stands its floor, the bytes of weights and factors at the read bandwidth measured in
// the same run; beside a prefill, its arithmetic; beside a question on a cached context, what it may cost;
// beside a step that shares a prefix, the same step without. Decode runs as the engine runs it: a step is
// launched before the tokens of the last are read.
#include <absl/strings/numbers.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bench/attention_cuda_kernels.h"
#include "bench/cuda_bench.h"
#include "bench/xl_model.h"
#include "engine/backend/factory.h"
#include "engine/base/check.h"
#include "engine/model_runner.h"

namespace t6::bench {
namespace {

constexpr int kMostSequences = 64, kMostRows = 8192, kDecodeSteps = 60;

class XlBench {
 public:
  // fills: the cache takes all that the plan of memory leaves.
  XlBench(Backend* backend, const BenchModel& model, int max_context, bool fills)
      : backend_(backend), spec_(model.spec), layout_(spec_.attention, DType::kBF16) {
    const StepLimits limits{.max_rows = kMostRows + 64,
                            .max_sequences = kMostSequences,
                            .max_outputs = 256,
                            .max_context = max_context};
    const size_t planned = T6Model::WeightBytes(spec_, DType::kBF16, max_context) +
                           T6Model::WorkspaceBytes(spec_, limits, DType::kBF16, *backend);
    const size_t left = backend->info().memory_available - planned;
    const double start = Seconds();
    model_ = Must(T6Model::Load(backend, spec_, *model.tensors, DType::kBF16, limits, nullptr));
    fmt::print("loaded in {:.1f} s; {:.3f} G parameters\n", Seconds() - start,
               static_cast<double>(spec_.n_parameters) / 1e9);
    MakeCache(fills ? static_cast<int>(left / (layout_.page_bytes() * spec_.n_layers)) : 64 * 67);
  }

  // Steps of every kind beside a cache that takes all that was planned for it: what the device has left.
  void Memory() {
    const auto free = [] {
      size_t bytes = 0, total = 0;
      Must(cudaMemGetInfo(&bytes, &total));
      return static_cast<double>(bytes) / (1 << 20);
    };
    fmt::print("memory  {:.0f} MiB of factors; loaded: {:.0f} MiB free\n",
               static_cast<double>(cache_->bytes()) / (1 << 20), free());
    for (const int n : {1, 50, 200, kMostRows}) ChunkSeconds(0, n);
    ChunkSeconds(100000, 100050);
    fmt::print("memory  after prompts: {:.0f} MiB free\n", free());
    for (int batch = 1; batch <= kMostSequences; batch *= 2) {
      TimeDecode(batch, {.each = 17}, 1024);
      TimeDecode(batch, {.each = 3, .shared = 500, .is_told = true}, 32064);
    }
    fmt::print("memory  after batches of 1 to {}: {:.0f} MiB free\n", kMostSequences, free());
  }

  void Decode(int batch, int context, double ceiling) {
    const Spans spans{.each = (context + kDecodeSteps + 16) / kPageTokens + 1};
    T6_CHECK(batch * spans.each <= cache_->n_pages());
    const Timed timed = TimeDecode(batch, spans, context);
    const double weights = 2.0 * static_cast<double>(spec_.n_parameters);
    const int middle = context + kDecodeSteps / 2;
    const double factors = static_cast<double>(batch) * middle * static_cast<double>(layout_.page_bytes()) /
                           kPageTokens * spec_.n_layers;
    const double floor = (weights + factors) / ceiling;
    fmt::print(
        "decode  batch {:>2} at {:>6}: {:8.3f} ms, floor {:7.3f} ms: {:.2f} of it; {:8.0f} tokens/s; "
        "host {:.0f} us a step, {:.0f} of them not hidden\n",
        batch, context, timed.step * 1e3, floor * 1e3, floor / timed.step, batch / timed.step,
        timed.host * 1e6, timed.bare_host * 1e6);
  }

  // Sequences on one document, with 64 tokens and a few of their own.
  void Shared(int batch, int document) {
    Spans spans{.each = 3, .shared = document / kPageTokens};
    T6_CHECK(spans.shared + batch * spans.each <= cache_->n_pages());
    const Timed alone = TimeDecode(batch, spans, document + 64);
    spans.is_told = true;
    const Timed told = TimeDecode(batch, spans, document + 64);
    fmt::print(
        "shared  batch {:>2} on {:>6}: {:8.3f} ms, host {:.0f} us; each for itself {:8.3f} ms, host {:.0f} "
        "us; "
        "{:.2f} times as fast\n",
        batch, document, told.step * 1e3, told.host * 1e6, alone.step * 1e3, alone.host * 1e6,
        alone.step / told.step);
  }

  // The first steps of a kind, before which nothing of it has run: what the first requests wait for.
  void Cold() {
    const auto seconds = [&](const StepPlan& plan) {
      const double start = Seconds();
      Must(runner_->Launch(plan));
      Must(runner_->Wait().status());
      return Seconds() - start;
    };
    for (const int n : {50, 1000}) {
      std::string times;
      for (int i = 0; i < 4; ++i) times += fmt::format(" {:8.2f}", seconds(ChunkPlan(0, n)) * 1e3);
      fmt::print("cold    {:>4} tokens of a prompt, ms:{}\n", n, times);
    }
    for (int batch = 1; batch <= kMostSequences; batch *= 2) {
      std::string times;
      for (int i = 0; i < 4; ++i)
        times += fmt::format(" {:8.2f}", seconds(PlanDecode(batch, {.each = 17}, 1000 + i, i == 0)) * 1e3);
      fmt::print("cold    {:>4} sequences, ms:        {}\n", batch, times);
    }
  }

  // The operations of a decode step by kind, of the `n`-th step of its kind: the first loads kernels, the
  // second may be recorded.
  void ProfileDecode(int batch, int context) {
    for (int step = 0; step < 4; ++step) {
      Must(runner_->Launch(
          PlanDecode(batch, {.each = (context + 16) / kPageTokens + 1}, context + step, step == 0)));
      Must(runner_->Wait().status());
    }
    PrintOperations(fmt::format("decode, {} sequences at {}", batch, context));
  }
  void ProfilePrefill(int n) {
    for (int i = 0; i < 2; ++i) {
      Must(runner_->Launch(ChunkPlan(0, n)));
      Must(runner_->Wait().status());
    }
    PrintOperations(fmt::format("prefill, {} tokens", n));
  }

  void Prefill(int n) {
    double host = 0.0;
    const double time = ChunkSeconds(0, n, &host);
    const AttentionSpec& a = spec_.attention;
    // Of the last layer all rows give their factors, one gives more.
    const int64_t behind_attention =
        int64_t{spec_.width} * (int64_t{a.n_heads} * a.head_dim + 3 * int64_t{spec_.mlp_width});
    const int64_t parameters =
        spec_.n_parameters - int64_t{spec_.vocab_size} * spec_.width - behind_attention;
    const double products = 2.0 * static_cast<double>(parameters) * n;
    const double attention = 2.0 * n * n * a.n_heads * a.head_dim * (spec_.n_layers - 1);
    fmt::print(
        "prefill {:>6} tokens:   {:8.2f} ms; products {:.1f} and attention {:.1f} TFLOP, {:.0f} TFLOP/s; "
        "host "
        "{:.2f} ms\n",
        n, time * 1e3, products / 1e12, attention / 1e12, (products + attention) / time / 1e12, host * 1e3);
  }

  // A question of n tokens on a cached context, against the question alone and what attention to the context
  // may cost at the rate that a long prompt's attention reaches.
  void Context(int n, int context) {
    constexpr int kChunk = 8192;
    const AttentionSpec& a = spec_.attention;
    const double pair_flops = 4.0 * a.n_heads * a.head_dim * spec_.n_layers;
    const double rate = pair_flops * kChunk * (kChunk + 1) / 2 / AttentionSeconds(0, kChunk);
    const double attends = AttentionSeconds(context, context + n);
    const double alone = ChunkSeconds(0, n), cached = ChunkSeconds(context, context + n);
    const double flops = pair_flops * n * context, limit = 1.3 * (alone + flops / rate);
    fmt::print(
        "context {} tokens, question {}: {:.2f} ms; 1.3 x ({:.2f} ms alone + {:.2f} TFLOP at {:.0f} TFLOP/s) "
        "= "
        "{:.2f} ms: {}; attention {:.0f} us a layer\n",
        context, n, cached * 1e3, alone * 1e3, flops / 1e12, rate / 1e12, limit * 1e3,
        cached <= limit ? "holds" : "does not hold", attends / spec_.n_layers * 1e6);
  }

 private:
  // Pages of a batch: `shared` ones of all, then `each` of every sequence.
  struct Spans {
    int each = 0, shared = 0;
    bool is_told = false;  // the plan says so
  };
  // Seconds.
  struct Timed {
    double step = 0, host = 0;
    double bare_host = 0;  // of steps that were launched after the one before was done
  };

  Timed TimeDecode(int batch, const Spans& spans, int context) {
    constexpr double kAtOnce = 20e-6;  // more than a wait for what is done takes
    std::vector<double> times, hosts;
    Must(runner_->Launch(PlanDecode(batch, spans, context, /*is_first=*/true)));
    double last = 0, bare = 0;
    for (int step = 1; step < kDecodeSteps; ++step) {
      const double planned = Seconds();
      Must(runner_->Launch(PlanDecode(batch, spans, context + step, /*is_first=*/false)));
      const double launched = Seconds();
      Must(runner_->Wait().status());
      const double now = Seconds();
      if (step > 10) times.push_back(now - last), hosts.push_back(launched - planned);
      if (step > 10 && now - launched < kAtOnce) bare += launched - planned;
      last = now;
    }
    Must(runner_->Wait().status());
    return {Median(times), Median(hosts), bare / static_cast<double>(hosts.size())};
  }

  // The step that follows the one planned last: all sequences at `position`, tokens from the step before.
  const StepPlan& PlanDecode(int batch, const Spans& spans, int position, bool is_first) {
    StepPlan& plan = plans_[turn_ ^= 1];
    plan.Clear();
    for (int s = 0; s < batch; ++s) {
      AddSequence(&plan, s, spans, position, position + 1);
      plan.token_ids.push_back(is_first ? (7 + s) % spec_.vocab_size : -1 - s);
    }
    if (spans.is_told) plan.shared_prefixes.push_back({0, batch, spans.shared});
    return plan;
  }

  void PrintOperations(const std::string& title) {
    struct Kind {
      int count = 0;
      double seconds = 0;
    };
    std::vector<std::string> order;
    std::map<std::string, Kind> kinds;
    double total = 0;
    for (const OperationTime& operation : Must(backend_->OperationTimes())) {
      if (!kinds.contains(operation.name)) order.push_back(operation.name);
      Kind& kind = kinds[operation.name];
      ++kind.count, kind.seconds += operation.seconds, total += operation.seconds;
    }
    fmt::print("{}: {:.3f} ms in operations\n", title, total * 1e3);
    for (const std::string& name : order) {
      const Kind& kind = kinds[name];
      fmt::print("  {:<24} {:>4} x {:9.2f} us  {:5.1f} %\n", name, kind.count,
                 kind.seconds / kind.count * 1e6, 100 * kind.seconds / total);
    }
  }

  const StepPlan& ChunkPlan(int first, int end) {
    StepPlan& plan = plans_[0];
    plan.Clear();
    T6_CHECK(end <= cache_->n_pages() * kPageTokens);
    AddSequence(&plan, 0, {.each = end / kPageTokens + 1}, first, end);
    for (int t = first; t < end; ++t) plan.token_ids.push_back((t * 7919) % spec_.vocab_size);
    return plan;
  }
  // A step of rows [first, end) of one sequence, from the plan to its token. `host`: of it, until all is
  // launched.
  double ChunkSeconds(int first, int end, double* host = nullptr) {
    std::vector<double> times, hosts;
    for (int i = 0; i < 9; ++i) {
      const StepPlan& plan = ChunkPlan(first, end);
      const double start = Seconds();
      Must(runner_->Launch(plan));
      hosts.push_back(Seconds() - start);
      Must(runner_->Wait().status());
      times.push_back(Seconds() - start);
    }
    if (host != nullptr) *host = Median(hosts);
    return Median(times);
  }
  // The attention of such a step alone, all layers.
  double AttentionSeconds(int first, int end) {
    const AttentionSpec& a = spec_.attention;
    const size_t rows = end - first, angles = static_cast<size_t>(end) * (a.rotary_dim / 2);
    float *qkv, *cos, *sin, *out;
    Must(cudaMalloc(reinterpret_cast<void**>(&qkv), rows * a.qkv_elements() * 4));
    Must(cudaMalloc(reinterpret_cast<void**>(&cos), angles * 4));
    Must(cudaMalloc(reinterpret_cast<void**>(&sin), angles * 4));
    Must(cudaMalloc(reinterpret_cast<void**>(&out), rows * a.n_heads * a.head_dim * 4));
    FillNormal(qkv, rows * a.qkv_elements(), 5, nullptr);
    FillAngles(cos, sin, angles, 6, nullptr);
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      Must(backend_->BeginStep(ChunkPlan(first, end), a));
      Must(cudaDeviceSynchronize());
      const double start = Seconds();
      for (int layer = 0; layer < spec_.n_layers; ++layer) {
        TpaAttentionParams params;
        params.spec = &a, params.qkv = qkv, params.cos = cos, params.sin = sin;
        params.pages = cache_->layer(layer), params.out = out, params.out_dtype = DType::kBF16;
        Must(backend_->TpaAttention(params));
      }
      Must(cudaDeviceSynchronize());
      times.push_back(Seconds() - start);
    }
    for (float* p : {qkv, cos, sin, out}) Must(cudaFree(p));
    return Median(times);
  }

  // One cache for all: a captured step belongs to its memory.
  void MakeCache(int n_pages) {
    cache_ = Must(FactorCache::Create(backend_, layout_, spec_.n_layers, n_pages));
    FillNormalBf16(cache_->layer(0).base, cache_->bytes() / 2, 3, nullptr);
    Must(cudaDeviceSynchronize());
    runner_ = std::make_unique<ModelRunner>(backend_, model_.get(), cache_.get(), spec_.vocab_size);
  }

  // Rows [first, end) of sequence `s`, whose last gives an output. Pages are scattered.
  void AddSequence(StepPlan* plan, int s, const Spans& spans, int first, int end) {
    const int n_pages = cache_->n_pages();
    // 7919 is prime: a permutation, unless it divides the number of pages.
    const auto page = [&, step = n_pages % 7919 == 0 ? int64_t{1} : int64_t{7919}](int i) {
      const int64_t own = i < spans.shared ? 0 : int64_t{s} * spans.each;
      return static_cast<int32_t>((own + i) * step % n_pages);
    };
    for (int t = first; t < end; ++t) {
      plan->positions.push_back(t);
      plan->slots.push_back(page(t / kPageTokens) * kPageTokens + t % kPageTokens);
    }
    const auto rows = static_cast<int32_t>(plan->positions.size());
    plan->output_rows.push_back(rows - 1);
    plan->sampling.push_back(SamplingRow{.temperature = 0});
    plan->row_begin.push_back(rows);
    plan->context_len.push_back(end);
    for (int i = 0; i * kPageTokens < end; ++i) plan->page_ids.push_back(page(i));
    plan->page_begin.push_back(static_cast<int32_t>(plan->page_ids.size()));
  }

  Backend* backend_;
  ModelSpec spec_;
  PageLayout layout_;
  std::unique_ptr<T6Model> model_;
  std::unique_ptr<FactorCache> cache_;
  std::unique_ptr<ModelRunner> runner_;
  StepPlan plans_[2];
  int turn_ = 0;
};

constexpr const char* kHelp =
    "usage: bench_xl_cuda [--model DIR] [KIND [SEQUENCES]]\n"
    "Steps on a GPU in bfloat16, on random factors, of a checkpoint (t6-checkpoint make --preset xl makes "
    "one), "
    "or of T6-XL with random weights: 48 layers, 78 heads of 64, width 1600, vocabulary 50304.\n"
    "  decode   a step of 1 to 64 sequences, beside the time of its bytes at the read bandwidth measured "
    "first\n"
    "  prefill  128 to 8192 tokens\n"
    "  context  50 tokens on 100,000 cached ones\n"
    "  shared   a decode step of sequences on one document, read together and each for itself\n"
    "  cold     the first steps of each kind, before anything has run\n"
    "  profile  a layer's operations and their share, one step at a time\n"
    "  memory   steps of every kind beside a cache of all that the plan of memory leaves\n"
    "Without KIND: decode, prefill, context, shared. SEQUENCES: only batches of so many.\n";

struct Arguments {
  std::string directory, kind;
  int batch = 0;  // 0: all
};

int Main(const Arguments& arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string& only = arguments.kind;
  auto made = MakeBackend({.device = "cuda", .times_operations = only == "profile"});
  if (!made.ok()) {
    fmt::print(stderr, "{}\n", made.status().ToString());
    return 1;
  }
  Backend* backend = made->backend.get();
  const BenchModel model = arguments.directory.empty() ? XlModel() : Must(OpenModel(arguments.directory));
  const double ceiling = ReadCeiling();
  fmt::print("{}; read ceiling {:.0f} GB/s\n", backend->info().description, ceiling / 1e9);
  XlBench bench(backend, model, 1 << 17, /*fills=*/only == "memory");
  const auto wanted = [&](int batch) { return arguments.batch == 0 || batch == arguments.batch; };
  const auto runs = [&](const char* kind) { return only.empty() || only == kind; };
  if (only == "memory") bench.Memory();
  if (only == "cold") bench.Cold();
  if (only == "profile") {
    for (const int batch : {1, 16, 64}) {
      if (wanted(batch)) bench.ProfileDecode(batch, 1024);
    }
    if (arguments.batch > 0) return 0;
    bench.ProfileDecode(64, 4096);
    for (const int n : {1024, 8192}) bench.ProfilePrefill(n);
  }
  if (runs("decode")) {
    for (const int batch : {1, 2, 4, 8, 16, 32, 64}) {
      if (wanted(batch)) bench.Decode(batch, 1024, ceiling);
    }
    for (const auto& [batch, context] : {std::pair(1, 4096), {1, 16384}, {16, 4096}, {64, 4096}}) {
      if (wanted(batch)) bench.Decode(batch, context, ceiling);
    }
  }
  if (runs("prefill")) {
    for (const int rows : {128, 512, 1024, 2048, 8192}) bench.Prefill(rows);
  }
  if (runs("context")) bench.Context(50, 100000);
  if (runs("shared")) {
    for (const int document : {4096, 8192, 16384, 32768, 100000}) {
      for (const int batch : {2, 4, 8, 16, 32, 64}) {
        if (wanted(batch)) bench.Shared(batch, document);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace t6::bench

int main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  t6::bench::Arguments arguments;
  const bool asks = words == std::vector<std::string>{"--help"};
  if (words.size() >= 2 && words[0] == "--model") {
    arguments.directory = words[1];
    words.erase(words.begin(), words.begin() + 2);
  }
  bool known = words.size() <= 2;
  if (!words.empty()) {
    arguments.kind = words[0];
    const auto& kinds = {"decode", "prefill", "context", "shared", "cold", "profile", "memory"};
    known &= std::find(kinds.begin(), kinds.end(), words[0]) != kinds.end();
  }
  if (words.size() > 1) {
    known &= absl::SimpleAtoi(words[1], &arguments.batch) && arguments.batch > 0;
  }
  if (asks || !known) {
    fmt::print(asks ? stdout : stderr, "{}", t6::bench::kHelp);
    return asks ? 0 : 2;
  }
  return t6::bench::Main(arguments);
}
