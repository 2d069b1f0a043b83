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

// cluster: blocks that share one; a single one: no clusters.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlappedClusters(void (*kernel)(Parameters...), dim3 grid, dim3 cluster, int n_threads,
                                     int shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  const cudaError_t error = PreferShared(reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2]{};
  int n_attributes = 0;
  if (CodeForThisChip() == ChipCode::kHopper) {  // other code does not wait
    attributes[n_attributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[n_attributes++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster.x * cluster.y * cluster.z > 1) {
    attributes[n_attributes].id = cudaLaunchAttributeClusterDimension;
    attributes[n_attributes++].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  }
  cudaLaunchConfig_t launch{};
  launch.gridDim = grid;
  launch.blockDim = dim3(n_threads);
  launch.dynamicSmemBytes = shared_bytes;
  launch.stream = stream;
  launch.attrs = attributes;
  launch.numAttrs = n_attributes;
  return cudaLaunchKernelEx(&launch, kernel, std::forward<Arguments>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapped(void (*kernel)(Parameters...), dim3 grid, int n_threads, int shared_bytes,
                             cudaStream_t stream, Arguments&&... arguments) {
  return LaunchOverlappedClusters(kernel, grid, dim3(1), n_threads, shared_bytes, stream,
                                  std::forward<Arguments>(arguments)...);
}

}  // namespace t6::cuda
