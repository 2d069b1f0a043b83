// What the benchmarks on a GPU share: errors end them, and the rate that a GPU reads at, for their ceilings.
#pragma once

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "bench/attention_cuda_kernels.h"
#include "bench/timing.h"
#include "engine/backend/cuda/cuda_status.h"

namespace t6::bench {

inline void Must(const Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "{}\n", MessageOf(status));
  std::exit(1);
}
inline void Must(cudaError_t error) { Must(cuda::FromCuda(error, "bench")); }
template <typename T>
T Must(StatusOr<T> result) {
  Must(result.status());
  return std::move(result).value();
}

// Bytes a second of a kernel that only reads.
inline double ReadCeiling() {
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

}  // namespace t6::bench
