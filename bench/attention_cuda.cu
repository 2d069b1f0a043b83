// Decode attention on a GPU: for every shape, the time of one layer in a captured graph over rotating buffers
// larger than the L2 cache, beside a kernel that only reads the same bytes in the same graph, and the error
// against float64.
//   bench_attention_cuda [--portable] [FILTER]   FILTER: a part of a row's name, "h47 8x" say
// A row is followed by the same over fp8 pages where there is a kernel, with how much faster that is.
// --portable forces the kernels of other chips. What was measured on an H200 is compared on an H200 only.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/attention_cuda_kernels.h"

namespace t6::bench {
namespace {

using t6::cuda::DecodeAttentionConfig;
using t6::cuda::DecodeShape;

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "bench_attention_cuda: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define MUST(call) Must(call, #call)

// Times in microseconds on an H200: the official Triton kernel, and the prototype of this one with dependent
// launches (0: not measured).
struct Row {
  int rank_q, rank, heads, batch, length_k;
  double official = 0.0, prototype = 0.0;
  int head_dim = 64;
};
const Row kRows[] = {
    {16, 1, 16, 1, 128, 22.3, 0},
    {16, 1, 16, 8, 128, 114.1, 0},
    {16, 1, 32, 1, 4, 13.7, 4.8},
    {16, 1, 32, 1, 32, 16.0, 0},
    {16, 1, 32, 1, 128, 26.5, 18.2},
    {16, 1, 32, 1, 512, 112.4, 0},
    {16, 1, 32, 8, 4, 15.3, 8.1},
    {16, 1, 32, 8, 32, 42.9, 30.4},
    {16, 1, 32, 8, 128, 144.5, 99.2},
    {16, 1, 32, 8, 512, 683.0, 371.5},
    {16, 1, 32, 16, 4, 19.9, 0},
    {16, 1, 32, 16, 32, 77.2, 0},
    {16, 1, 32, 16, 128, 277.7, 0},
    {16, 1, 32, 16, 512, 1289, 729.5},
    {16, 1, 48, 1, 128, 41.4, 0},
    {16, 1, 48, 8, 128, 268.8, 0},
    {6, 2, 22, 1, 128, 109.2, 0},
    {6, 2, 22, 8, 128, 814.7, 0},
    {6, 2, 34, 1, 128, 209.2, 0},
    {6, 2, 34, 8, 128, 1531.8, 0},
    {6, 2, 47, 1, 4, 38.5, 6.0},
    {6, 2, 47, 1, 32, 55.8, 12.7},
    {6, 2, 47, 1, 128, 208.3, 33.4},
    {6, 2, 47, 1, 512, 887.3, 110.9},
    {6, 2, 47, 8, 4, 55.3, 13.9},
    {6, 2, 47, 8, 32, 408.0, 60.5},
    {6, 2, 47, 8, 128, 1541.3, 215.2},
    {6, 2, 47, 8, 512, 6192.5, 830.3},
    {6, 2, 47, 16, 4, 106.4, 21.3},
    {6, 2, 47, 16, 32, 781.3, 0},
    {6, 2, 47, 16, 128, 3042.5, 420.9},
    {6, 2, 47, 16, 512, 12326.4, 0},
    {6, 2, 61, 1, 128, 211.4, 0},
    {6, 2, 61, 8, 128, 1591.1, 0},
    {6, 2, 78, 1, 4, 37.9, 7.8},
    {6, 2, 78, 1, 32, 102.5, 15.9},
    {6, 2, 78, 1, 128, 309.9, 0},
    {6, 2, 78, 1, 512, 1254.0, 0},
    {6, 2, 78, 8, 4, 102.7, 0},
    {6, 2, 78, 8, 32, 614.3, 76.6},
    {6, 2, 78, 8, 128, 2357.0, 275.3},
    {6, 2, 78, 8, 512, 9505.5, 1066},
    // Other ranks and widths.
    {6, 3, 47, 8, 4},
    {6, 3, 47, 8, 128},
    {6, 4, 47, 8, 4},
    {6, 4, 47, 8, 128},
    {6, 1, 47, 8, 128, 0, 0, 32},
    {6, 2, 47, 8, 4, 0, 0, 32},
    {6, 2, 47, 8, 128, 0, 0, 32},
    {6, 3, 47, 8, 128, 0, 0, 32},
    {6, 4, 47, 8, 128, 0, 0, 32},
    {6, 2, 80, 8, 128, 0, 0, 32},
    {6, 1, 24, 8, 128, 0, 0, 128},
    {6, 2, 24, 8, 4, 0, 0, 128},
    {6, 2, 24, 8, 128, 0, 0, 128},
    {6, 2, 96, 8, 128, 0, 0, 128},
    {6, 3, 24, 8, 128, 0, 0, 128},
    {6, 4, 24, 8, 128, 0, 0, 128},
};

constexpr size_t kPoolBytes = size_t{16} << 30;
constexpr size_t kRotation = size_t{320} << 20;  // several times the L2 cache
constexpr int kMaxPositions = 512 * 1024, kMaxPairs = 64;
constexpr int kReplays = 15;

template <typename T>
T* DeviceAlloc(size_t n) {
  void* p = nullptr;
  MUST(cudaMalloc(&p, n * sizeof(T)));
  return static_cast<T*>(p);
}

// Device memory of one row's problem; the pool of pages is shared by all rows.
struct Arena {
  std::vector<void*> blocks;
  ~Arena() {
    for (void* p : blocks) cudaFree(p);
  }
  template <typename T>
  T* Alloc(size_t n) {
    blocks.push_back(DeviceAlloc<T>(std::max<size_t>(n, 1)));
    return static_cast<T*>(blocks.back());
  }
  template <typename T>
  T* Copy(const std::vector<T>& host) {
    T* p = Alloc<T>(host.size());
    MUST(cudaMemcpy(p, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
  }
};

struct Machine {
  t6::cuda::DecodeDevice device;
  cudaStream_t stream = nullptr;
  uint8_t* pool = nullptr;
  float *cos = nullptr, *sin = nullptr, *never_written = nullptr;
  bool is_h200 = false;

  explicit Machine(bool portable) {
    cudaDeviceProp properties;
    MUST(cudaGetDeviceProperties(&properties, 0));
    MUST(t6::cuda::DecodeDevice::Query(&device));
    device.portable |= portable;
    is_h200 = std::strstr(properties.name, "H200") != nullptr;
    MUST(cudaStreamCreate(&stream));
    pool = DeviceAlloc<uint8_t>(kPoolBytes);
    cos = DeviceAlloc<float>(size_t{kMaxPositions} * kMaxPairs),
    sin = DeviceAlloc<float>(size_t{kMaxPositions} * kMaxPairs);
    never_written = DeviceAlloc<float>(1);
    FillAngles(cos, sin, size_t{kMaxPositions} * kMaxPairs, 2, stream);
    MUST(cudaStreamSynchronize(stream));
    std::printf("%s, %d multiprocessors, %s kernels\n", properties.name, device.n_sms,
                device.portable ? "portable" : "sm_90a");
  }
};

struct Timing {
  double ours = 0.0, read_only = 0.0;  // microseconds a layer
};

// One problem: sequences of given lengths, in as many layers as it takes to leave the cache behind.
class Problem {
 public:
  Problem(const Machine& machine, const DecodeShape& shape, const DecodeAttentionConfig& config,
          std::vector<int> lengths)
      : machine_(machine), shape_(shape), config_(config), lengths_(std::move(lengths)) {
    MakePages();
    FillPool();
    MakeCall();
    const t6::cuda::StepSequences step{arena_.Copy<int32_t>({n_sequences()}),
                                       arena_.Copy(Ints(lengths_)),
                                       arena_.Copy(rows_),
                                       arena_.Copy(page_begin_),
                                       call_.page_ids,
                                       n_sequences()};
    MUST(t6::cuda::LaunchDecodePlan(step, call_.plan, machine_.stream));
    MUST(cudaStreamSynchronize(machine_.stream));
  }

  size_t bytes() const { return layer_bytes_; }

  // The relative error of a first run against float64, over the first and the last sequence.
  double Error() {
    const size_t width = static_cast<size_t>(shape_.n_heads) * shape_.head_dim;
    MUST(cudaMemsetAsync(call_.out.data, 0xff, n_sequences() * width * sizeof(float), machine_.stream));
    Launch(0, false);
    std::vector<float> out(n_sequences() * width);
    MUST(
        cudaMemcpyAsync(out.data(), call_.out.data, out.size() * 4, cudaMemcpyDeviceToHost, machine_.stream));
    double* reference = arena_.Alloc<double>(width);
    std::vector<double> want(width);
    double difference = 0.0, size = 0.0;
    for (const int s : {0, n_sequences() - 1}) {
      const size_t angle = static_cast<size_t>(lengths_[s] - 1) * (shape_.rotary_dim / 2);
      Reference(
          {shape_, machine_.pool, call_.page_ids + page_begin_[s], call_.qkv + s * shape_.qkv_elements(),
           machine_.cos + angle, machine_.sin + angle, lengths_[s], reference},
          machine_.stream);
      MUST(cudaMemcpyAsync(want.data(), reference, width * 8, cudaMemcpyDeviceToHost, machine_.stream));
      MUST(cudaStreamSynchronize(machine_.stream));
      for (size_t i = 0; i < width; ++i) {
        difference += std::pow(out[s * width + i] - want[i], 2), size += want[i] * want[i];
      }
    }
    return std::sqrt(difference / size);
  }

  Timing Time() {
    cudaEvent_t events[3];
    for (cudaEvent_t& event : events) MUST(cudaEventCreate(&event));
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    MUST(cudaStreamBeginCapture(machine_.stream, cudaStreamCaptureModeThreadLocal));
    MUST(cudaEventRecordWithFlags(events[0], machine_.stream, cudaEventRecordExternal));
    for (int layer = 0; layer < n_layers_; ++layer) Launch(layer, layer > 0);
    MUST(cudaEventRecordWithFlags(events[1], machine_.stream, cudaEventRecordExternal));
    for (int layer = 0; layer < n_layers_; ++layer) {
      ReadOnly(machine_.pool + layer * layer_bytes_, layer_bytes_, machine_.device.n_sms,
               machine_.never_written, machine_.stream);
    }
    MUST(cudaEventRecordWithFlags(events[2], machine_.stream, cudaEventRecordExternal));
    MUST(cudaStreamEndCapture(machine_.stream, &graph));
    MUST(cudaGraphInstantiate(&executable, graph, 0));

    std::vector<double> ours, read_only;
    for (int i = 0; i < kReplays + 2; ++i) {
      MUST(cudaGraphLaunch(executable, machine_.stream));
      MUST(cudaStreamSynchronize(machine_.stream));
      if (i < 2) continue;
      ours.push_back(Elapsed(events[0], events[1])), read_only.push_back(Elapsed(events[1], events[2]));
    }
    MUST(cudaGraphExecDestroy(executable));
    MUST(cudaGraphDestroy(graph));
    for (cudaEvent_t& event : events) MUST(cudaEventDestroy(event));
    return {Median(ours) / n_layers_, Median(read_only) / n_layers_};
  }

 private:
  int n_sequences() const { return static_cast<int>(lengths_.size()); }
  static std::vector<int32_t> Ints(const std::vector<int>& x) { return {x.begin(), x.end()}; }
  static double Elapsed(cudaEvent_t from, cudaEvent_t to) {
    float ms = 0.0f;
    MUST(cudaEventElapsedTime(&ms, from, to));
    return ms * 1e3;
  }
  static double Median(std::vector<double> x) {
    std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
    return x[x.size() / 2];
  }

  // Every layer holds exactly the sequences' pages, in random order.
  void MakePages() {
    page_begin_ = rows_ = {0};
    for (const int length : lengths_) {
      page_begin_.push_back(page_begin_.back() + (length + 63) / 64);
      rows_.push_back(rows_.back() + 1);
    }
    const int n_pages = page_begin_.back();
    layer_bytes_ = shape_.page_bytes() * n_pages;
    n_layers_ = static_cast<int>(std::clamp<size_t>(kRotation / layer_bytes_ + 1, 2, 128));
    if (n_layers_ * layer_bytes_ > kPoolBytes) Must(cudaErrorMemoryAllocation, "the pool is too small");
    std::vector<int32_t> page_ids(n_pages);
    std::iota(page_ids.begin(), page_ids.end(), 0);
    std::shuffle(page_ids.begin(), page_ids.end(), std::mt19937(3));
    call_.page_ids = arena_.Copy(page_ids);
    maps_.resize(n_layers_);
    for (int i = 0; i < n_layers_; ++i) {
      MUST(t6::cuda::MakePageMaps(shape_, machine_.pool + i * layer_bytes_, n_pages, &maps_[i]));
    }
  }

  void FillPool() {
    const size_t bytes = n_layers_ * layer_bytes_;
    if (shape_.fp8) {
      FillFp8Pages(machine_.pool, shape_, bytes / shape_.page_bytes(), 1, machine_.stream);
    } else {
      FillNormalBf16(machine_.pool, bytes / 2, 1, machine_.stream);
    }
  }

  void MakeCall() {
    const int n = n_sequences();
    const int64_t n_segments = t6::cuda::MaxSegments(config_.n_blocks, n, page_begin_.back(), 0);
    call_.config = &config_;
    call_.plan = {arena_.Alloc<t6::cuda::DecodeSegment>(n_segments),
                  arena_.Alloc<t6::cuda::DecodeSequence>(n),
                  arena_.Alloc<t6::cuda::DecodeBlock>(config_.n_blocks),
                  arena_.Alloc<int32_t>(n + 1),
                  config_.n_blocks,
                  0};
    float* qkv = arena_.Alloc<float>(static_cast<size_t>(n) * shape_.qkv_elements());
    FillNormal(qkv, static_cast<size_t>(n) * shape_.qkv_elements(), 4, machine_.stream);
    call_.qkv = qkv, call_.cos = machine_.cos, call_.sin = machine_.sin;
    call_.partials = {arena_.Alloc<float>(n_segments * shape_.n_heads * shape_.head_dim),
                      arena_.Alloc<float2>(n_segments * shape_.n_heads)};
    call_.out = {arena_.Alloc<float>(static_cast<size_t>(n) * shape_.n_heads * shape_.head_dim), false};
    call_.max_sequences = n;
  }

  void Launch(int layer, bool overlaps_prior) {
    call_.maps = &maps_[layer], call_.pages = machine_.pool + layer * layer_bytes_;
    call_.overlaps_prior = overlaps_prior;
    MUST(t6::cuda::LaunchDecodeAttention(call_, machine_.stream));
  }

  const Machine& machine_;
  DecodeShape shape_;
  DecodeAttentionConfig config_;
  std::vector<int> lengths_;
  std::vector<int32_t> page_begin_, rows_;
  size_t layer_bytes_ = 0;
  int n_layers_ = 0;
  Arena arena_;
  std::vector<t6::cuda::PageMaps> maps_;
  t6::cuda::DecodeCall call_;
};

std::string Name(const Row& row) {
  char name[64], width[16] = "";
  if (row.head_dim != 64) std::snprintf(width, sizeof width, " d%d", row.head_dim);
  std::snprintf(name, sizeof name, "(%d,%d,%d) h%d%s %dx%dk", row.rank_q, row.rank, row.rank, row.heads,
                width, row.batch, row.length_k);
  return name;
}

// What must hold of a row, as one word each, and "yes" when all does.
std::string Verdict(const Row& row, size_t bytes, const Timing& t, bool is_h200) {
  std::string broken;
  const double fixed = row.heads == 78 ? 7.0 : 5.0;
  if (t.ours > 1.05 * t.read_only + fixed) broken += " over-limit";
  if (bytes >= 900e6 && t.read_only / t.ours < 0.94) broken += " under-94%";
  if (!is_h200) return broken.empty() ? " yes" : broken;
  if (row.prototype > 0 && t.ours > 1.03 * row.prototype) broken += " over-prototype";
  if (row.official > 0 && row.batch >= 8 && row.length_k >= 32) {
    const double speedup = row.official / t.ours;
    if (row.rank == 2 && speedup < (row.heads >= 34 ? 6.0 : 4.5)) broken += " official";
    if (row.rank == 1 && row.heads >= 32 && speedup < 1.4) broken += " official";
  }
  return broken.empty() ? " yes" : broken;
}

// `bf16`: the time of the same row over bfloat16 pages, when this is one of fp8. Returns the time; 0 without
// a kernel.
double Measure(const Machine& machine, const Row& row, const std::string& name,
               const std::vector<int>& lengths, double bf16 = 0.0) {
  const int d = row.head_dim;
  const double scale = 1.0 / (std::sqrt(static_cast<double>(d)) * row.rank_q * row.rank);
  const DecodeShape shape{row.heads, d,    row.rank,  row.rank_q, d, static_cast<float>(scale),
                          false,     0.0f, bf16 > 0.0};
  const auto config = DecodeAttentionConfig::Make(shape, machine.device);
  if (!config) {
    if (bf16 == 0.0) std::printf("%-22s no kernel\n", name.c_str());
    return 0.0;
  }
  Problem problem(machine, shape, *config, lengths);
  const double error = problem.Error();
  const Timing t = problem.Time();
  std::printf("%-22s %8.1f %8.1f %8.1f  %5.2f %6.1f  %7.5f %2d x %2d", name.c_str(), problem.bytes() / 1e6,
              t.read_only, t.ours, t.read_only / t.ours, t.ours - 1.05 * t.read_only, error,
              config->n_threads / 32, config->n_stages);
  if (machine.is_h200) {
    std::printf(" %8.1f %8.1f %8.1f", problem.bytes() / 4594e3, row.prototype, row.official);
  }
  if (bf16 > 0.0) {
    std::printf("   %.2f x bf16\n", bf16 / t.ours);
  } else {
    std::printf("  %s\n", Verdict(row, problem.bytes(), t, machine.is_h200).c_str());
  }
  std::fflush(stdout);
  return t.ours;
}

}  // namespace
}  // namespace t6::bench

int main(int argc, char** argv) {
  using namespace t6::bench;
  const bool portable = argc > 1 && std::strcmp(argv[1], "--portable") == 0;
  const std::string filter = argc > 1 + portable ? argv[1 + portable] : "";
  if (argc > 2 + portable || filter.starts_with('-')) {
    const bool asks = filter == "--help";
    std::fputs("usage: bench_attention_cuda [--portable] [PART-OF-A-ROW'S-NAME]\n", asks ? stdout : stderr);
    return asks ? 0 : 2;
  }
  const Machine machine(portable);
  std::printf("%-22s %8s %8s %8s  %5s %6s  %7s %7s", "ranks heads batch", "MB", "readonly", "ours", "ratio",
              "extra", "error", "w x st");
  if (machine.is_h200) std::printf(" %8s %8s %8s", "floor", "proto", "official");
  std::printf("   holds\n");
  for (const Row& row : kRows) {
    const std::string name = Name(row);
    if (name.find(filter) == std::string::npos) continue;
    const std::vector<int> lengths(row.batch, row.length_k * 1024);
    const double bf16 = Measure(machine, row, name, lengths);
    if (bf16 > 0.0) Measure(machine, row, name + " fp8", lengths, bf16);
  }
  if (filter.empty()) {
    std::vector<int> ragged;
    std::mt19937 random(6);
    for (int i = 0; i < 16; ++i) ragged.push_back(1000 + static_cast<int>(random() % 54000));
    Measure(machine, {6, 2, 47, 16, 0, 0, 0}, "(6,2,2) h47 ragged", ragged);
  }
  return 0;
}
