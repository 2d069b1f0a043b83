// Launches on a programmatic edge: the kernel may start before the one in front of it is done, and calls
// ptx::WaitForPriorKernels() before it touches anything that changes from kernel to kernel. Every kernel
// launched so waits, or the edges behind it would not be transitive.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "engine/backend/cuda/chip.h"

namespace t6::cuda {

// Kernels that want a multiprocessor's memory divided otherwise do not run on it side by side: all kernels of
// a step ask for the most that can be shared.
inline cudaError_t PreferShared(const void* kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

// A launch's configuration, on a programmatic edge where `overlaps`. cluster: blocks that share one; a single
// one: no clusters.
class OverlappedLaunch {
 public:
  OverlappedLaunch(dim3 grid, int n_threads, int shared_bytes, cudaStream_t stream, bool overlaps,
                   dim3 cluster = dim3(1)) {
    config_.gridDim = grid, config_.blockDim = dim3(n_threads);
    config_.dynamicSmemBytes = shared_bytes, config_.stream = stream, config_.attrs = attributes_;
    if (overlaps) {
      attributes_[config_.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes_[config_.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster.x * cluster.y * cluster.z > 1) {
      attributes_[config_.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes_[config_.numAttrs++].val.clusterDim = {cluster.x, cluster.y, cluster.z};
    }
  }
  OverlappedLaunch(const OverlappedLaunch&) = delete;
  OverlappedLaunch& operator=(const OverlappedLaunch&) = delete;

  const cudaLaunchConfig_t* config() const { return &config_; }

 private:
  cudaLaunchAttribute attributes_[2]{};
  cudaLaunchConfig_t config_{};
};

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlappedClusters(void (*kernel)(Parameters...), dim3 grid, dim3 cluster, int n_threads,
                                     int shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  const cudaError_t error = PreferShared(reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess) return error;
  const bool overlaps = CodeForThisChip() == ChipCode::kHopper;  // other code does not wait
  const OverlappedLaunch launch(grid, n_threads, shared_bytes, stream, overlaps, cluster);
  return cudaLaunchKernelEx(launch.config(), kernel, std::forward<Arguments>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapped(void (*kernel)(Parameters...), dim3 grid, int n_threads, int shared_bytes,
                             cudaStream_t stream, Arguments&&... arguments) {
  return LaunchOverlappedClusters(kernel, grid, dim3(1), n_threads, shared_bytes, stream,
                                  std::forward<Arguments>(arguments)...);
}

}  // namespace t6::cuda
