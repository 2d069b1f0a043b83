// Attention of several query rows on the GPU, one layer: chunks, few rows on long contexts, rows on shared
// pages, and whether the cost shares rightly. usage: bench_attention_prefill_cuda [PART_OF_A_NAME|sharing]
// Prints, for each case, the time, the rate counted in visible pairs of tokens alone, and the error of a few
// rows against float64.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "bench/attention_cuda_kernels.h"
#include "bench/cuda_bench.h"
#include "engine/backend/cuda/cuda_memory.h"
#include "engine/backend/cuda/multi_row_attention.h"
#include "engine/backend/cuda/prefill_attention.h"
#include "engine/backend/cuda/tpa_attention.h"

namespace t6::bench {
namespace {

constexpr int kMaxContext = 1 << 17;
constexpr size_t kPoolBytes = size_t{1200} << 20;

struct Case {
  const char* name;
  int h;
  int n_sequences, rows, context;  // each; the rows are the last of the context
  int shared_pages = 0;
  int min_prefill_rows = 256;
};

struct Buffers {
  cudaStream_t stream;
  cuda::DeviceMemory pool, qkv, cos, sin, out, reference;
  Buffers() {
    Must(cudaStreamCreate(&stream));
    Must(pool.Allocate(kPoolBytes));
    Must(qkv.Allocate(size_t{8192} * 2000 * 4));
    Must(cos.Allocate(size_t{kMaxContext} * 32 * 4)), Must(sin.Allocate(size_t{kMaxContext} * 32 * 4));
    Must(out.Allocate(size_t{8192} * 78 * 64 * 4)), Must(reference.Allocate(78 * 64 * 8));
    FillNormalBf16(pool.as<void>(), kPoolBytes / 2, 1, stream);
    FillNormal(qkv.as<float>(), size_t{8192} * 2000, 2, stream);
    FillAngles(cos.as<float>(), sin.as<float>(), size_t{kMaxContext} * 32, 3, stream);
    Must(cudaStreamSynchronize(stream));
  }
};

AttentionSpec SpecOf(int h) {
  AttentionSpec spec;
  spec.n_heads = h, spec.head_dim = spec.rotary_dim = 64;
  spec.q.rank = 6, spec.k.rank = spec.v.rank = 2;
  return spec;
}

// Milliseconds of one replay: the median.
float MedianMs(cudaStream_t stream, int n_layers, const std::function<void(int)>& layer) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  Must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < n_layers; ++i) layer(i);
  Must(cudaStreamEndCapture(stream, &graph));
  Must(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  Must(cudaEventCreate(&begin)), Must(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 9; ++i) {
    Must(cudaEventRecord(begin, stream));
    Must(cudaGraphLaunch(executable, stream));
    Must(cudaEventRecord(end, stream));
    Must(cudaEventSynchronize(end));
    float ms;
    Must(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms / n_layers);
  }
  std::sort(times.begin(), times.end());
  Must(cudaGraphExecDestroy(executable)), Must(cudaGraphDestroy(graph));
  Must(cudaEventDestroy(begin)), Must(cudaEventDestroy(end));
  return times[times.size() / 2];
}

class Bench {
 public:
  Bench(const Case& c, Buffers& buffers)
      : case_(c), buffers_(buffers), spec_(SpecOf(c.h)), layout_(spec_, DType::kBF16) {
    MakePlan();
    cuda::MultiRowOptions options;
    options.always_shares = true;
    options.min_prefill_rows = c.min_prefill_rows;
    auto path = cuda::MakeMultiRowAttention(options);
    Must(path.status());
    path_ = *std::move(path);
    Must(path_->Reserve(
        {.max_rows = 8192, .max_sequences = 64, .max_outputs = 64, .max_context = kMaxContext}, spec_));
    n_pages_ = static_cast<int>(plan_.page_ids.size());
    Must(positions_.Allocate(plan_.n_rows() * 4)), Must(page_ids_.Allocate(n_pages_ * 4));
    Must(slots_.Allocate(plan_.n_rows() * 4));
    for (const auto& [to, from] : {std::pair(&positions_, &plan_.positions), {&slots_, &plan_.slots}}) {
      Must(cudaMemcpy(to->as<void>(), from->data(), from->size() * 4, cudaMemcpyHostToDevice));
    }
    Must(cudaMemcpy(page_ids_.as<void>(), plan_.page_ids.data(), n_pages_ * 4, cudaMemcpyHostToDevice));
    step_.plan = &plan_, step_.positions = positions_.as<int32_t>(), step_.page_ids = page_ids_.as<int32_t>();
    step_.slots = slots_.as<int32_t>();
  }

  void Run() {
    Must(path_->Plan(step_, spec_, 1, buffers_.stream));
    Must(cudaStreamSynchronize(buffers_.stream));
    Must(cudaMemsetAsync(buffers_.out.as<void>(), 0xff, buffers_.out.size(), buffers_.stream));
    Layer(0);
    const double error = Error();
    // As many layers as make the pages of all of them larger than L2, and the time long enough.
    const size_t bytes = n_pages_ * layout_.page_bytes();
    const int n_pools = static_cast<int>(std::clamp<size_t>(kPoolBytes / bytes, 1, 16));
    const double pairs = Pairs();
    const int n_layers = pairs > 1e7 ? 6 : 24;
    const float ms = MedianMs(buffers_.stream, n_layers, [&](int i) { Layer(i % n_pools); });
    const double flops = 4.0 * case_.h * 64 * pairs;
    std::printf("%-34s %9.1f us %7.1f TFLOP/s  error %.5f\n", case_.name, 1e3 * ms, flops / ms * 1e-9, error);
    std::fflush(stdout);
  }

 private:
  void MakePlan() {
    std::mt19937 random(9);
    plan_.Clear();
    const int own_pages = (case_.context + 63) / 64 - case_.shared_pages;
    const int total = case_.shared_pages + case_.n_sequences * own_pages;
    std::vector<int32_t> ids(total);
    for (int i = 0; i < total; ++i) ids[i] = i;
    std::shuffle(ids.begin(), ids.end(), random);
    for (int s = 0; s < case_.n_sequences; ++s) {
      for (int i = 0; i < case_.rows; ++i) {
        plan_.token_ids.push_back(0);
        plan_.positions.push_back(case_.context - case_.rows + i);
      }
      plan_.row_begin.push_back(plan_.n_rows()), plan_.context_len.push_back(case_.context);
      plan_.page_ids.insert(plan_.page_ids.end(), ids.begin(), ids.begin() + case_.shared_pages);
      const auto own = ids.begin() + case_.shared_pages + s * own_pages;
      for (int t = case_.context - case_.rows; t < case_.context; ++t) {
        const int page = own[t / kPageTokens - case_.shared_pages];
        plan_.slots.push_back(page * kPageTokens + t % kPageTokens);
      }
      plan_.page_ids.insert(plan_.page_ids.end(), own, own + own_pages);
      plan_.page_begin.push_back(static_cast<int32_t>(plan_.page_ids.size()));
    }
    if (case_.shared_pages > 0) plan_.shared_prefixes.push_back({0, case_.n_sequences, case_.shared_pages});
    n_total_ = total;
  }

  double Pairs() const {
    double pairs = 0.0;
    for (const int32_t position : plan_.positions) pairs += position + 1.0;
    return pairs;
  }

  void Layer(int pool) {
    const size_t bytes = n_total_ * layout_.page_bytes();
    TpaAttentionParams params;
    params.spec = &spec_, params.qkv = buffers_.qkv.as<float>();
    params.cos = buffers_.cos.as<float>(), params.sin = buffers_.sin.as<float>();
    params.pages = {buffers_.pool.as<uint8_t>() + pool * bytes, &layout_, n_total_};
    params.out = buffers_.out.as<float>();
    Must(path_->Run(params, step_, 1, buffers_.stream));
  }

  double Error() {
    const int width = case_.h * 64, n = plan_.n_rows();
    std::vector<float> got(width);
    std::vector<double> want(width);
    double difference = 0.0, size = 0.0;
    for (const int row : {0, n / 3, n - 1}) {
      const int s = row / case_.rows;
      Reference({.shape = {case_.h, 64, 2, 6, 64, spec_.logit_scale(), false, 0.0f},
                 .pages = buffers_.pool.as<void>(),
                 .page_ids = page_ids_.as<int32_t>() + plan_.page_begin[s],
                 .qkv = buffers_.qkv.as<float>() + static_cast<size_t>(row) * spec_.qkv_elements(),
                 .cos = buffers_.cos.as<float>() + static_cast<size_t>(plan_.positions[row]) * 32,
                 .sin = buffers_.sin.as<float>() + static_cast<size_t>(plan_.positions[row]) * 32,
                 .length = plan_.positions[row] + 1,
                 .out = buffers_.reference.as<double>()},
                buffers_.stream);
      Must(cudaStreamSynchronize(buffers_.stream));
      Must(cudaMemcpy(want.data(), buffers_.reference.as<void>(), width * 8, cudaMemcpyDeviceToHost));
      Must(cudaMemcpy(got.data(), buffers_.out.as<float>() + static_cast<size_t>(row) * width, width * 4,
                      cudaMemcpyDeviceToHost));
      for (int i = 0; i < width; ++i) {
        difference += std::pow(got[i] - want[i], 2), size += want[i] * want[i];
      }
    }
    return std::sqrt(difference / size);
  }

  const Case case_;
  Buffers& buffers_;
  const AttentionSpec spec_;
  const PageLayout layout_;
  StepPlan plan_;
  cuda::AttentionStep step_;
  std::unique_ptr<cuda::AttentionPath> path_;
  cuda::DeviceMemory positions_, slots_, page_ids_;
  int n_pages_ = 0, n_total_ = 0;
};

// Decode rows on one prefix: read for each of them, once for all, and as the cost decides.
class SharingBench {
 public:
  SharingBench(int h, Buffers& buffers) : spec_(SpecOf(h)), layout_(spec_, DType::kBF16), buffers_(buffers) {
    for (const bool always : {true, false}) {
      cuda::TpaAttentionOptions options;
      options.stream = buffers.stream;
      auto path = cuda::MakeMultiRowAttention({.always_shares = always});
      Must(path.status());
      options.multi_row = *std::move(path);
      auto made = cuda::TpaAttention::Make(std::move(options));
      Must(made.status());
      (always ? always_ : chosen_) = *std::move(made);
      Must((always ? always_ : chosen_)
               ->Reserve({.max_rows = 64, .max_sequences = 64, .max_outputs = 64, .max_context = 1 << 16},
                         spec_));
    }
  }
  void Run(int n, int prefix) {
    const float alone = Time(*always_, n, prefix, false), together = Time(*always_, n, prefix, true);
    const float chosen = Time(*chosen_, n, prefix, true);
    std::printf("h%d %2d on %5d: each %7.1f us, together %7.1f us, chosen %7.1f us%s\n", spec_.n_heads, n,
                prefix, alone, together, chosen,
                chosen <= 1.02f * std::min(alone, together) + 1.0f ? "" : "  NOT THE FASTER ONE");
  }

 private:
  // Microseconds of a layer.
  float Time(cuda::TpaAttention& attention, int n, int prefix, bool is_shared) {
    constexpr int kOwn = 64;
    const int own_pages = kOwn / kPageTokens, shared_pages = prefix / kPageTokens;
    const int n_pages = shared_pages + n * own_pages;
    StepPlan plan;
    plan.Clear();
    for (int s = 0; s < n; ++s) {
      plan.token_ids.push_back(0), plan.positions.push_back(prefix + kOwn - 1);
      for (int i = 0; i < shared_pages; ++i) plan.page_ids.push_back(i * 7919 % shared_pages);
      for (int i = 0; i < own_pages; ++i) plan.page_ids.push_back(shared_pages + s * own_pages + i);
      plan.slots.push_back(plan.page_ids.back() * kPageTokens + kPageTokens - 1);
      plan.row_begin.push_back(s + 1), plan.context_len.push_back(prefix + kOwn);
      plan.page_begin.push_back(static_cast<int32_t>(plan.page_ids.size()));
    }
    if (is_shared) plan.shared_prefixes.push_back({0, n, shared_pages});
    Must(attention.Plan(plan, spec_));
    Must(cudaStreamSynchronize(buffers_.stream));
    const size_t bytes = n_pages * layout_.page_bytes();
    const int n_pools = static_cast<int>(std::clamp<size_t>(kPoolBytes / bytes, 1, 24));
    return 1e3f * MedianMs(buffers_.stream, 24, [&](int i) {
             TpaAttentionParams params;
             params.spec = &spec_, params.qkv = buffers_.qkv.as<float>();
             params.cos = buffers_.cos.as<float>(), params.sin = buffers_.sin.as<float>();
             params.pages = {buffers_.pool.as<uint8_t>() + i % n_pools * bytes, &layout_, n_pages};
             params.out = buffers_.out.as<float>();
             Must(attention.Run(params));
           });
  }

  const AttentionSpec spec_;
  const PageLayout layout_;
  Buffers& buffers_;
  std::unique_ptr<cuda::TpaAttention> always_, chosen_;
};

// The three kernels of a chunk of 8k tokens one by one.
void Phases(Buffers& buffers) {
  constexpr int kH = 78, kN = 8192;
  const AttentionSpec spec = SpecOf(kH);
  const cuda::DecodeShape shape{kH, 64, 2, 6, 64, spec.logit_scale(), false, 0.0f};
  cuda::DeviceMemory queries, keys, values, counters, expands, positions;
  Must(queries.Allocate(size_t{kH} * kN * 128)), Must(keys.Allocate(size_t{kH} * kN * 128));
  Must(values.Allocate(size_t{kH} * kN * 128)), Must(counters.Allocate(cuda::kMaxPrefillPasses * 4));
  std::vector<cuda::ExpandPage> pages;
  for (int i = 0; i < kN / 64; ++i) pages.push_back({i, 64, i * 64});
  std::vector<int32_t> at(kN);
  for (int i = 0; i < kN; ++i) at[i] = i;
  Must(expands.Allocate(pages.size() * sizeof(pages[0]))), Must(positions.Allocate(kN * 4));
  Must(cudaMemcpy(expands.as<void>(), pages.data(), expands.size(), cudaMemcpyHostToDevice));
  Must(cudaMemcpy(positions.as<void>(), at.data(), kN * 4, cudaMemcpyHostToDevice));
  cuda::QueryCall query;
  query.shape = shape, query.qkv = buffers.qkv.as<float>(), query.positions = positions.as<int32_t>();
  query.cos = buffers.cos.as<float>(), query.sin = buffers.sin.as<float>();
  query.queries = queries.as<void>(), query.n_rows = query.query_rows = kN;
  query.counters = counters.as<int32_t>();
  cuda::ExpandCall expand;
  expand.shape = shape, expand.pages = buffers.pool.as<void>(),
  expand.expands = expands.as<cuda::ExpandPage>();
  expand.n_expands = static_cast<int>(pages.size()), expand.n_heads = kH, expand.n_scratch_tokens = kN;
  expand.keys = keys.as<void>(), expand.values = values.as<void>();
  const float query_ms =
      MedianMs(buffers.stream, 10, [&](int) { Must(cuda::LaunchQueries(query, buffers.stream)); });
  const float expand_ms =
      MedianMs(buffers.stream, 10, [&](int) { Must(cuda::LaunchExpand(expand, buffers.stream)); });
  query.pages = buffers.pool.as<void>(), query.slots = query.scratch_tokens = query.positions;
  query.n_heads = kH, query.n_scratch_tokens = kN, query.keys = expand.keys, query.values = expand.values;
  const float all_ms =
      MedianMs(buffers.stream, 10, [&](int) { Must(cuda::LaunchQueries(query, buffers.stream)); });
  std::printf("8k tokens, h 78: queries %.1f us, expansion %.1f us, both with the store %.1f us\n",
              1e3 * query_ms, 1e3 * expand_ms, 1e3 * all_ms);
}

int Main(int argc, char** argv) {
  cudaDeviceProp device;
  Must(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
  static const Case kCases[] = {
      {.name = "h78 chunk 8k", .h = 78, .n_sequences = 1, .rows = 8192, .context = 8192},
      {.name = "h78 chunk 8k by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 8192,
       .context = 8192,
       .min_prefill_rows = 0},
      {.name = "h78 chunk 1k", .h = 78, .n_sequences = 1, .rows = 1024, .context = 1024},
      {.name = "h78 chunk 1k by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 1024,
       .context = 1024,
       .min_prefill_rows = 0},
      {.name = "h78 chunk 128",
       .h = 78,
       .n_sequences = 1,
       .rows = 128,
       .context = 128,
       .min_prefill_rows = 65},
      {.name = "h78 chunk 128 by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 128,
       .context = 128,
       .min_prefill_rows = 0},
      {.name = "h78 chunk 128 of 1024",
       .h = 78,
       .n_sequences = 1,
       .rows = 128,
       .context = 1024,
       .min_prefill_rows = 65},
      {.name = "h78 chunk 128 of 1024 by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 128,
       .context = 1024,
       .min_prefill_rows = 0},
      {.name = "h78 chunk 100 of 4096",
       .h = 78,
       .n_sequences = 1,
       .rows = 100,
       .context = 4096,
       .min_prefill_rows = 65},
      {.name = "h78 chunk 100 of 4096 by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 100,
       .context = 4096,
       .min_prefill_rows = 0},
      {.name = "h78 chunk 512",
       .h = 78,
       .n_sequences = 1,
       .rows = 512,
       .context = 512,
       .min_prefill_rows = 65},
      {.name = "h78 chunk 512 by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 512,
       .context = 512,
       .min_prefill_rows = 0},
      {.name = "h78 chunk 200 of 2048",
       .h = 78,
       .n_sequences = 1,
       .rows = 200,
       .context = 2048,
       .min_prefill_rows = 65},
      {.name = "h78 chunk 200 of 2048 by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 200,
       .context = 2048,
       .min_prefill_rows = 0},
      {.name = "h78 chunk 2k of 16k", .h = 78, .n_sequences = 1, .rows = 2048, .context = 16384},
      {.name = "h78 chunk 2k of 16k by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 2048,
       .context = 16384,
       .min_prefill_rows = 0},
      {.name = "h78 chunk 512 of 8k", .h = 78, .n_sequences = 1, .rows = 512, .context = 8192},
      {.name = "h78 chunk 512 of 8k by rows",
       .h = 78,
       .n_sequences = 1,
       .rows = 512,
       .context = 8192,
       .min_prefill_rows = 0},
      {.name = "h78 16 rows of 100k", .h = 78, .n_sequences = 1, .rows = 16, .context = 100000},
      {.name = "h78 32 rows of 100k", .h = 78, .n_sequences = 1, .rows = 32, .context = 100000},
      {.name = "h78 50 rows of 100k", .h = 78, .n_sequences = 1, .rows = 50, .context = 100050},
      {.name = "h78 64 rows of 100k", .h = 78, .n_sequences = 1, .rows = 64, .context = 100000},
      {.name = "h47 16 on 32k, own 64",
       .h = 47,
       .n_sequences = 16,
       .rows = 1,
       .context = 32768 + 64,
       .shared_pages = 512},
      {.name = "h47 64 on 32k, own 64",
       .h = 47,
       .n_sequences = 64,
       .rows = 1,
       .context = 32768 + 64,
       .shared_pages = 512},
      {.name = "h47 64 on 32k, own 500",
       .h = 47,
       .n_sequences = 64,
       .rows = 1,
       .context = 32768 + 500,
       .shared_pages = 512},
  };
  Buffers buffers;
  const char* part = argc > 1 ? argv[1] : "";
  if (*part == '\0') Phases(buffers);
  for (const Case& c : kCases) {
    if (std::strstr(c.name, part) != nullptr) Bench(c, buffers).Run();
  }
  for (const int h : {47, 78}) {
    if (*part != '\0' && std::strcmp(part, "sharing") != 0) break;
    SharingBench bench(h, buffers);
    for (const int n : {2, 4, 8, 16, 64}) {
      for (const int prefix : {1024, 4096, 32768}) bench.Run(n, prefix);
    }
  }
  return 0;
}

}  // namespace
}  // namespace t6::bench

int main(int argc, char** argv) {
  if (argc <= 1 || (argc == 2 && *argv[1] != '-')) return t6::bench::Main(argc, argv);
  const bool asks = std::strcmp(argv[1], "--help") == 0;
  std::fputs("usage: bench_attention_prefill_cuda [PART-OF-A-ROW'S-NAME | sharing]\n",
             asks ? stdout : stderr);
  return asks ? 0 : 2;
}
