#include "engine/backend/cuda/prefill_attention.h"
#include "engine/backend/cuda/prefill_kernel.cuh"

namespace t6::cuda {
cudaError_t LaunchPrefill(const PrefillParams& params, const PrefillMaps& maps, int n_sms,
                          cudaStream_t stream) {
  if (params.n_tiles == 0) return cudaSuccess;
  const auto kernel = reinterpret_cast<const void*>(&PrefillAttention);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, PrefillShared::kBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(n_sms);
  launch.blockDim = dim3(PrefillTraits::kThreads);
  launch.dynamicSmemBytes = PrefillShared::kBytes;
  launch.stream = stream;
  PrefillParams p = params;
  PrefillMaps m = maps;
  void* arguments[] = {&p, &m};
  return cudaLaunchKernelExC(&launch, kernel, arguments);
}

}  // namespace t6::cuda
