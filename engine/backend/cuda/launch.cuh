// Launches on a programmatic edge: the kernel may start before the one in front of it is done, and calls
// ptx::WaitForPriorKernels() before it touches anything that changes from kernel to kernel. Every kernel
// launched so waits, or the edges behind it would not be transitive.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

namespace t6::cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapped(void (*kernel)(Parameters...), dim3 grid, int n_threads, cudaStream_t stream,
                             Arguments&&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = grid;
  launch.blockDim = dim3(n_threads);
  launch.stream = stream;
  launch.attrs = &overlap;
  launch.numAttrs = 1;
  return cudaLaunchKernelEx(&launch, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace t6::cuda
