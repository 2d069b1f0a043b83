// T6-XL's steps on a GPU (48 layers, 78 heads of 64, width 1600, vocabulary 50304): decode and prefill
// through the backend that the engine uses, random weights and factors. Beside a decode step stands its
// floor, the bytes of weights and factors at the read bandwidth measured in the same run; beside a prefill,
// its arithmetic; beside a question on a cached context, what it may cost. Decode runs as the engine runs it:
// a step is launched before the tokens of the last are read. `profile` lists what the operations of a step
// take, one step at a time. A number after either of them: only steps of so many sequences.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bench/attention_cuda_kernels.h"
#include "engine/backend/factory.h"
#include "engine/base/check.h"
#include "engine/model/t6_shapes.h"
#include "engine/model_runner.h"

namespace t6::bench {
namespace {

constexpr int kMostSequences = 64, kMostRows = 8192;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}
template <typename T>
T Must(StatusOr<T> result) {
  T6_CHECK(result.ok(), "{}", result.status().ToString());
  return std::move(result).value();
}
void Must(const Status& status) { T6_CHECK(status.ok(), "{}", status.ToString()); }
void Must(cudaError_t error) { T6_CHECK(error == cudaSuccess, "{}", cudaGetErrorString(error)); }

ModelSpec XlSpec() {
  ModelSpec spec;
  spec.variant = "T6";
  spec.vocab_size = 50304, spec.n_layers = 48, spec.width = 1600, spec.block_size = 1024;
  spec.mlp_width = OfficialMlpWidth(spec.width);
  AttentionSpec& a = spec.attention;
  a.n_heads = 78, a.head_dim = a.rotary_dim = 64;
  a.q.rank = 6, a.k.rank = a.v.rank = 2;
  return spec;
}

// Every tensor is a window on one buffer of random numbers.
class RandomWeights final : public TensorSource {
 public:
  explicit RandomWeights(const ModelSpec& spec) : numbers_(kNumbers) {
    uint64_t state = 1;
    for (bf16& x : numbers_) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      // Uniform of deviation 0.02, as weights are initialised.
      x = ToBf16((static_cast<float>(state >> 40) / (1 << 24) - 0.5f) * 0.07f);
    }
    const AttentionSpec& a = spec.attention;
    shapes_ = T6Shapes({.vocab_size = spec.vocab_size,
                        .n_layers = spec.n_layers,
                        .width = spec.width,
                        .mlp_width = spec.mlp_width,
                        .n_heads = a.n_heads,
                        .head_dim = a.head_dim,
                        .rank_q = a.q.rank,
                        .rank_k = a.k.rank,
                        .rank_v = a.v.rank});
  }
  std::vector<std::string> Names() const override { return {}; }
  StatusOr<TensorView> Find(std::string_view name) const override {
    const auto at = shapes_.find(std::string(name));
    if (at == shapes_.end()) return NotFound("no tensor {}", name);
    TensorView view{nullptr, DType::kBF16, at->second};
    const size_t room = kNumbers - static_cast<size_t>(view.n_elements());
    view.data = numbers_.data() + std::hash<std::string_view>()(name) % room;
    return view;
  }
  int64_t n_parameters() const {
    int64_t n = 0;
    for (const auto& [name, shape] : shapes_) n += shape[0] * (shape.size() > 1 ? shape[1] : 1);
    return n;
  }

 private:
  static constexpr size_t kNumbers = size_t{128} << 20;
  std::vector<bf16> numbers_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

// Bytes a second of a kernel that only reads.
double ReadCeiling() {
  const size_t bytes = size_t{4} << 30;
  void* buffer = nullptr;
  float* sink = nullptr;
  Must(cudaMalloc(&buffer, bytes));
  Must(cudaMalloc(reinterpret_cast<void**>(&sink), 4));
  FillNormalBf16(buffer, bytes / 2, 1, nullptr);
  int n_sms = 0;
  Must(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0));
  std::vector<double> rates;
  for (int i = 0; i < 9; ++i) {
    Must(cudaDeviceSynchronize());
    const double start = Seconds();
    for (int k = 0; k < 4; ++k) ReadOnly(buffer, bytes, n_sms, sink, nullptr);
    Must(cudaDeviceSynchronize());
    rates.push_back(4 * static_cast<double>(bytes) / (Seconds() - start));
  }
  cudaFree(buffer);
  cudaFree(sink);
  return Median(rates);
}

class XlBench {
 public:
  XlBench(Backend* backend, int max_context)
      : backend_(backend), spec_(XlSpec()), weights_(spec_), layout_(spec_.attention, DType::kBF16) {
    const StepLimits limits{.max_rows = kMostRows + 64,
                            .max_sequences = kMostSequences,
                            .max_outputs = 256,
                            .max_context = max_context};
    const double start = Seconds();
    model_ = Must(T6Model::Load(backend, spec_, weights_, DType::kBF16, limits, nullptr));
    fmt::print("loaded in {:.1f} s; {:.3f} G parameters\n", Seconds() - start,
               static_cast<double>(weights_.n_parameters()) / 1e9);
    MakeCache(64 * 67);
  }

  void Decode(int batch, int context, double ceiling) {
    const int n_steps = 60;
    const int pages_each = (context + n_steps + 16) / kPageTokens + 1;
    T6_CHECK(batch * pages_each <= cache_->n_pages());
    const auto plan_step = [&](int step) -> const StepPlan& {
      return PlanDecode(batch, pages_each, context + step, step == 0);
    };
    std::vector<double> times, hosts;
    Must(runner_->Launch(plan_step(0)));
    double last = 0;
    for (int step = 1; step < n_steps; ++step) {
      const double planned = Seconds();
      const StepPlan& plan = plan_step(step);
      Must(runner_->Launch(plan));
      const double launched = Seconds();
      Must(runner_->Wait().status());
      const double now = Seconds();
      if (step > 10) times.push_back(now - last), hosts.push_back(launched - planned);
      last = now;
    }
    Must(runner_->Wait().status());
    const double weights = 2.0 * static_cast<double>(weights_.n_parameters());
    const double factors = static_cast<double>(batch) * (context + n_steps / 2) *
                           static_cast<double>(layout_.page_bytes()) / kPageTokens * spec_.n_layers;
    const double floor = (weights + factors) / ceiling, time = Median(times);
    fmt::print(
        "decode  batch {:>2} at {:>6}: {:8.3f} ms, floor {:7.3f} ms: {:.2f} of it; {:8.0f} tokens/s; "
        "host {:.0f} us a step\n",
        batch, context, time * 1e3, floor * 1e3, floor / time, batch / time, Median(hosts) * 1e6);
  }

  // The operations of a decode step by kind, of the `n`-th step of its kind: the first loads kernels, the
  // second may be recorded.
  void ProfileDecode(int batch, int context) {
    for (int step = 0; step < 4; ++step) {
      Must(runner_->Launch(PlanDecode(batch, (context + 16) / kPageTokens + 1, context + step, step == 0)));
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
    const double time = ChunkSeconds(0, n);
    const AttentionSpec& a = spec_.attention;
    const double products =
        2.0 * static_cast<double>(weights_.n_parameters() - int64_t{spec_.vocab_size} * spec_.width) * n;
    const double attention = 2.0 * n * n * a.n_heads * a.head_dim * spec_.n_layers;
    fmt::print(
        "prefill {:>6} tokens:   {:8.2f} ms; products {:.1f} and attention {:.1f} TFLOP, {:.0f} TFLOP/s\n", n,
        time * 1e3, products / 1e12, attention / 1e12, (products + attention) / time / 1e12);
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
  // The step that follows the one planned last: all sequences at `position`, tokens from the step before.
  const StepPlan& PlanDecode(int batch, int pages_each, int position, bool is_first) {
    StepPlan& plan = plans_[turn_ ^= 1];
    plan.Clear();
    for (int s = 0; s < batch; ++s) {
      AddSequence(&plan, s, pages_each, position, position + 1);
      plan.token_ids.push_back(is_first ? 7 + s : -1 - s);
    }
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
    AddSequence(&plan, 0, end / kPageTokens + 1, first, end);
    for (int t = first; t < end; ++t) plan.token_ids.push_back((t * 7919) % 50000);
    return plan;
  }
  // A step of rows [first, end) of one sequence, from the plan to its token.
  double ChunkSeconds(int first, int end) {
    std::vector<double> times;
    for (int i = 0; i < 9; ++i) {
      const double start = Seconds();
      Must(runner_->Launch(ChunkPlan(first, end)));
      Must(runner_->Wait().status());
      times.push_back(Seconds() - start);
    }
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
  void AddSequence(StepPlan* plan, int s, int pages_each, int first, int end) {
    const int n_pages = cache_->n_pages();
    // 7919 is prime: a permutation, unless it divides the number of pages.
    const auto page = [&, step = n_pages % 7919 == 0 ? int64_t{1} : int64_t{7919}](int i) {
      return static_cast<int32_t>((int64_t{s} * pages_each + i) * step % n_pages);
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
  RandomWeights weights_;
  PageLayout layout_;
  std::unique_ptr<T6Model> model_;
  std::unique_ptr<FactorCache> cache_;
  std::unique_ptr<ModelRunner> runner_;
  StepPlan plans_[2];
  int turn_ = 0;
};

int Main(const std::string& only, int only_batch) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  auto made = MakeBackend({.device = "cuda", .times_operations = only == "profile"});
  if (!made.ok()) {
    fmt::print(stderr, "{}\n", made.status().ToString());
    return 1;
  }
  Backend* backend = made->backend.get();
  const double ceiling = ReadCeiling();
  fmt::print("{}; read ceiling {:.0f} GB/s\n", backend->info().description, ceiling / 1e9);
  XlBench bench(backend, 1 << 17);
  const auto wanted = [&](int batch) { return only_batch == 0 || batch == only_batch; };
  if (only == "profile") {
    for (const int batch : {1, 16, 64}) {
      if (wanted(batch)) bench.ProfileDecode(batch, 1024);
    }
    if (only_batch > 0) return 0;
    bench.ProfileDecode(64, 4096);
    for (const int n : {1024, 8192}) bench.ProfilePrefill(n);
    return 0;
  }
  if (only.empty() || only == "decode") {
    for (const int batch : {1, 2, 4, 8, 16, 32, 64}) {
      if (wanted(batch)) bench.Decode(batch, 1024, ceiling);
    }
    for (const auto& [batch, context] : {std::pair(1, 4096), {1, 16384}, {16, 4096}, {64, 4096}}) {
      if (wanted(batch)) bench.Decode(batch, context, ceiling);
    }
  }
  if (only.empty() || only == "prefill") {
    for (const int rows : {128, 512, 1024, 2048, 8192}) bench.Prefill(rows);
  }
  if (only.empty() || only == "context") bench.Context(50, 100000);
  return 0;
}

}  // namespace
}  // namespace t6::bench

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  bool known = only.empty();
  for (const char* name : {"decode", "prefill", "context", "profile"}) known |= only == name;
  const int batch = argc > 2 ? std::atoi(argv[2]) : 0;
  if (argc > 3 || !known || (argc > 2 && batch < 1)) {
    fmt::print(stderr, "usage: bench_xl_cuda [decode|prefill|context|profile] [sequences]\n");
    return 2;
  }
  return t6::bench::Main(only, batch);
}
