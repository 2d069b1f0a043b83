// The products of the shipped model (or of a width): each beside what the machine can do, measured in the
// same run. Few rows are bound by reading the weights, many by arithmetic, so both ceilings are printed.
//   bench_gemm [threads] [width]
#include "engine/backend/cpu/gemm.h"

#include <fmt/format.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/ceiling.h"
#include "bench/peak_flops.h"

namespace t6::bench {
namespace {

struct Layer {
  std::string name;
  int n, k;
  bool swiglu = false;
  std::unique_ptr<PackedMatrix> weight = nullptr;
};

std::vector<Layer> Layers(int width) {
  if (width == 384) {  // t6-docqa-14m: 13 heads of 64, ranks 6 2 2
    std::vector<Layer> layers;
    for (int i = 0; i < 6; ++i) {
      layers.push_back({"factors", 770, 384});
      layers.push_back({"attention out", 384, 832});
      layers.push_back({"gate, up", 2048, 384, true});
      layers.push_back({"down", 384, 1024});
    }
    layers.push_back({"head", 8192, 384});
    return layers;
  }
  std::vector<Layer> layers;
  layers.push_back({"square", width, width});
  layers.push_back({"gate, up", 2 * (width * 8 / 3), width, true});
  return layers;
}

template <typename Work>
double Time(const Work& work) {
  std::vector<double> samples;
  const double until = Seconds() + 0.15;
  do {
    const double start = Seconds();
    work();
    samples.push_back(Seconds() - start);
  } while (Seconds() < until || samples.size() < 5);
  return Median(samples);
}

void Print(const std::string& name, int n_rows, double seconds, double flops, double peak, double bytes,
           double bandwidth) {
  fmt::print(
      "  {:<14} {:>4} rows {:>9.1f} us {:>8.1f} GFLOP/s {:>3.0f} % of {:.0f} {:>8.1f} GB/s {:>3.0f} % of "
      "{:.1f}\n",
      name, n_rows, seconds * 1e6, flops / seconds * 1e-9, 100 * flops / seconds / peak, peak * 1e-9,
      bytes / seconds * 1e-9, 100 * bytes / seconds / bandwidth, bandwidth * 1e-9);
}

void Run(DType dtype, int threads, int width) {
  ThreadPool pool(threads);
  const auto gemm = cpu::Gemm::Make(&pool);
  std::vector<Layer> layers = Layers(width);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.05f);
  double model_bytes = 0, model_flops = 0;
  int widest = 0, deepest = 0;
  for (Layer& layer : layers) {
    std::vector<float> values(static_cast<size_t>(layer.n) * layer.k);
    for (float& v : values) v = normal(random);
    std::vector<TensorView> parts{{values.data(), DType::kF32, {layer.n, layer.k}}};
    if (layer.swiglu) {
      parts[0].shape[0] /= 2;
      parts.push_back(parts[0]);
    }
    layer.weight = std::move(gemm->Pack(parts, dtype, layer.swiglu)).value();
    model_bytes += static_cast<double>(values.size()) * SizeOf(dtype);
    model_flops += 2.0 * static_cast<double>(values.size());
    widest = std::max(widest, layer.n), deepest = std::max(deepest, layer.k);
  }
  const double peak = PeakFlops(dtype, threads);
  fmt::print("{}, {} threads\n", NameOf(dtype), threads);
  std::vector<float> in(static_cast<size_t>(512) * deepest), out(static_cast<size_t>(512) * widest);
  for (float& v : in) v = normal(random);
  const auto project = [&](const Layer& layer, int n_rows) {
    ProjectParams p;
    p.in = in.data(), p.n_rows = n_rows, p.weight = layer.weight.get(), p.out = out.data();
    p.norm = {true, 1e-6f, nullptr};
    if (layer.swiglu) p.epilogue = Epilogue::kSwiGlu;
    gemm->Project(p);
  };
  const size_t n_kinds = std::min<size_t>(layers.size(), 4);
  for (int n_rows : {1, 4, 16, 64, 512}) {
    for (size_t i = 0; i <= n_kinds; ++i) {
      if (i == n_kinds && layers.size() <= 4) break;
      const Layer& layer = i == n_kinds ? layers.back() : layers[i];
      const double weights = static_cast<double>(layer.n) * layer.k;
      const double bandwidth = ReadBandwidth(static_cast<size_t>(weights * SizeOf(dtype)), threads);
      Print(layer.name, n_rows, Time([&] { project(layer, n_rows); }), 2 * weights * n_rows, peak,
            weights * SizeOf(dtype), bandwidth);
    }
  }
  const double bandwidth = ReadBandwidth(static_cast<size_t>(model_bytes), threads);
  for (int n_rows : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}) {
    const double seconds = Time([&] {
      for (const Layer& layer : layers) project(layer, n_rows);
    });
    Print("all of them", n_rows, seconds, model_flops * n_rows, peak, model_bytes, bandwidth);
  }
}

}  // namespace
}  // namespace t6::bench

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const int width = argc > 2 ? std::atoi(argv[2]) : 384;
  if (threads < 1 || width < 64) {
    fmt::print(stderr, "usage: bench_gemm [threads] [width >= 64]\n");
    return 2;
  }
  t6::bench::Run(t6::DType::kF32, threads, width);
  t6::bench::Run(t6::DType::kBF16, threads, width);
}
