// The products of T6-XL's layer at 32 and 64 rows on a GPU, each with its norm, SwiGLU or residual: our
// kernel (split_product.h), however k is split, and cuBLASLt's with the row kernels that it needs. A graph of
// many, on different weights, from launch to launch; beside it the time of the weights' bytes at the read
// bandwidth measured in the same run. `all` lists every division of a product.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/attention_cuda_kernels.h"
#include "bench/cuda_bench.h"
#include "engine/backend/cuda/gemm.h"
#include "engine/base/check.h"
#include "engine/model/t6_shapes.h"

namespace t6::bench {
namespace {

using cuda::SkinnyCall;
using cuda::SplitShape;

constexpr size_t kWeightBytes = size_t{2} << 30, kRoom = size_t{256} << 20;
constexpr int kRuns = 48, kRepeats = 9;

struct Product {
  const char* name;
  int n, k;  // n: of outputs
  Epilogue epilogue;
  bool normed;
  int weight_rows() const { return cuda::RoundUp64(n) * (epilogue == Epilogue::kSwiGlu ? 2 : 1); }
  int k_stride() const { return cuda::RoundUp64(k); }
  size_t bytes() const { return size_t{2} * weight_rows() * k_stride(); }
};

class ProductsBench {
 public:
  ProductsBench() {
    Must(cudaStreamCreate(&stream_));
    Must(cudaDeviceGetAttribute(&n_sms_, cudaDevAttrMultiProcessorCount, 0));
    weights_ = Allocate(kWeightBytes), in_ = Allocate(kRoom), out_ = Allocate(kRoom);
    rows_ = Allocate(kRoom), squares_ = Allocate(kRoom), hidden_ = Allocate(kRoom);
    Must(cudaMemset(squares_, 0x42, kRoom));  // floats of 48.6, as 64 normal numbers have about
    auto matmul = cuda::Matmul::Make(stream_);
    Must(matmul.status());
    matmul_ = std::move(*matmul);
    Must(matmul_->Reserve());
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      times.push_back(Seconds([&] { ReadOnly(weights_, kWeightBytes, n_sms_, Floats(squares_), stream_); }));
    }
    ceiling_ = kWeightBytes / Median(times);
  }
  double ceiling() const { return ceiling_; }

  void Run(const Product& p, int n_rows, bool lists_all) {
    const double floor = static_cast<double>(p.bytes()) / ceiling_ * 1e6;
    const auto splits = [&](SplitShape shape) {
      return OfMany([&](int i) { Must(LaunchSplitProduct(CallOf(p, n_rows, i), shape, stream_)); });
    };
    const SplitShape chosen = SplitShape::Make(p.weight_rows(), p.k_stride(), n_sms_);
    fmt::print(
        "{:<12} {:>3} rows: weights alone {:5.1f} us; ours {:5.1f} ({} columns, k / {}), "
        "cuBLASLt {:5.1f}\n",
        p.name, n_rows, floor, splits(chosen), chosen.tile_columns, chosen.n_splits, CublasLt(p, n_rows));
    if (!lists_all) return;
    for (const int columns : {64, 128}) {
      fmt::print("  {:>3} columns:", columns);
      for (int n = 1; n <= SplitShape::kMostSplits; ++n)
        fmt::print(" k / {}: {:5.1f}", n, splits({columns, n}));
      fmt::print("\n");
    }
  }
  // The layer's products in their order, each reading what the one before wrote.
  void RunLayer(const std::vector<Product>& products, int n_rows) {
    const auto n = static_cast<int>(products.size());
    const double time = OfMany([&](int i) {
      const Product& p = products[i % n];
      const SplitShape shape = SplitShape::Make(p.weight_rows(), p.k_stride(), n_sms_);
      Must(LaunchSplitProduct(CallOf(p, n_rows, i), shape, stream_));
    });
    double bytes = 0;
    for (const Product& p : products) bytes += static_cast<double>(p.bytes());
    fmt::print("a layer      {:>3} rows: weights alone {:5.1f} us; ours {:5.1f}\n", n_rows,
               bytes / ceiling_ * 1e6, time * n);
  }

 private:
  static float* Floats(void* p) { return static_cast<float*>(p); }
  void* Allocate(size_t bytes) {
    void* p = nullptr;
    Must(cudaMalloc(&p, bytes));
    FillNormalBf16(p, bytes / 2, 1, nullptr);
    Must(cudaDeviceSynchronize());
    return p;
  }
  const void* WeightsOf(const Product& p, int i) const {
    const size_t places = kWeightBytes / p.bytes();
    return static_cast<const char*>(weights_) + static_cast<size_t>(i) % places * p.bytes();
  }

  SkinnyCall CallOf(const Product& p, int n_rows, int i) const {
    SkinnyCall call;
    call.weight = WeightsOf(p, i), call.n = p.n, call.up_row = cuda::RoundUp64(p.n);
    call.k = call.in_stride = call.k_stride = p.k_stride();
    call.in = p.normed ? rows_ : hidden_, call.n_rows = n_rows, call.epilogue = p.epilogue;
    if (p.normed) {
      call.squares = Floats(squares_), call.n_pieces = cuda::SplitPieces(p.k);
      call.norm_width = p.k, call.norm_eps = 1e-5f;
    }
    call.out = p.epilogue == Epilogue::kSwiGlu ? hidden_ : out_, call.out_stride = cuda::RoundUp64(p.n);
    call.stats = {rows_, cuda::RoundUp64(p.n), Floats(squares_), cuda::SplitPieces(p.n)};
    return call;
  }

  double CublasLt(const Product& p, int n_rows) {
    const bool swiglu = p.epilogue == Epilogue::kSwiGlu;
    const auto call = [&](int i) {
      cuda::MatmulCall c;
      c.shape = {.m = n_rows, .n = p.weight_rows(), .k = p.k_stride()};
      c.shape.in_stride = c.shape.weight_stride = p.k_stride(), c.shape.out_stride = p.weight_rows();
      c.shape.out_dtype = swiglu ? DType::kBF16 : DType::kF32, c.shape.adds = p.epilogue == Epilogue::kAdd;
      c.in = rows_, c.weight = WeightsOf(p, i), c.out = out_;
      return c;
    };
    Must(matmul_->Tune(call));
    cuda::NormRowsCall norm;
    norm.in = in_, norm.in_stride = p.k, norm.n_rows = n_rows, norm.k = p.k;
    norm.norm = {.enabled = true, .eps = 1e-5f};
    norm.out = rows_, norm.out_dtype = DType::kBF16, norm.out_stride = p.k_stride();
    return OfMany([&](int i) {
      if (p.normed) Must(LaunchNormRows(norm, stream_));
      Must(matmul_->Run(call(i)));
      if (!swiglu) return;
      Must(cuda::LaunchSwiGlu({out_, DType::kBF16, n_rows, cuda::RoundUp64(p.n), hidden_}, stream_));
    });
  }

  double Seconds(const std::function<void()>& launch) {
    cudaEvent_t begin, end;
    Must(cudaEventCreate(&begin)), Must(cudaEventCreate(&end));
    Must(cudaEventRecord(begin, stream_));
    launch();
    Must(cudaEventRecord(end, stream_));
    Must(cudaEventSynchronize(end));
    float milliseconds = 0;
    Must(cudaEventElapsedTime(&milliseconds, begin, end));
    Must(cudaEventDestroy(begin)), Must(cudaEventDestroy(end));
    return milliseconds * 1e-3;
  }
  // Microseconds of one among kRuns in a graph.
  double OfMany(const std::function<void(int)>& launch) {
    launch(0);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    Must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kRuns; ++i) launch(i);
    Must(cudaStreamEndCapture(stream_, &graph));
    Must(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<double> times;
    for (int i = 0; i < kRepeats; ++i) {
      times.push_back(Seconds([&] { Must(cudaGraphLaunch(executable, stream_)); }));
    }
    Must(cudaGraphExecDestroy(executable)), Must(cudaGraphDestroy(graph));
    return Median(times) / kRuns * 1e6;
  }

  cudaStream_t stream_ = nullptr;
  int n_sms_ = 0;
  double ceiling_ = 0;  // bytes a second
  void *weights_, *in_, *out_, *rows_, *squares_, *hidden_;
  std::unique_ptr<cuda::Matmul> matmul_;
};

int Main(bool lists_all) {
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    fmt::print(stderr, "no GPU\n");
    return 1;
  }
  ProductsBench bench;
  fmt::print("{}; read ceiling {:.0f} GB/s\n", device.name, bench.ceiling() / 1e9);
  constexpr int kWidth = 1600, kHeads = 78 * 64;
  const int mlp = OfficialMlpWidth(kWidth);
  const std::vector<Product> layer = {{"projections", 1420, kWidth, Epilogue::kStore, true},
                                      {"out", kWidth, kHeads, Epilogue::kAdd, false},
                                      {"gate, up", mlp, kWidth, Epilogue::kSwiGlu, true},
                                      {"down", kWidth, mlp, Epilogue::kAdd, false}};
  for (const int n_rows : {32, 64}) {
    for (const Product& p : layer) bench.Run(p, n_rows, lists_all);
    bench.Run({"head", 50304, kWidth, Epilogue::kStore, true}, n_rows, lists_all);
    bench.RunLayer(layer, n_rows);
  }
  return 0;
}

}  // namespace
}  // namespace t6::bench

int main(int argc, char** argv) {
  const std::string only = argc > 1 ? argv[1] : "";
  if (argc > 2 || (!only.empty() && only != "all")) {
    const bool asks = only == "--help";
    fmt::print(asks ? stdout : stderr, "usage: bench_products_cuda [all]\n");
    return asks ? 0 : 2;
  }
  return t6::bench::Main(only == "all");
}
