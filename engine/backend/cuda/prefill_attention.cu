#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/prefill_attention.h"
#include "engine/backend/cuda/prefill_kernel.cuh"

namespace t6::cuda {
cudaError_t LaunchPrefill(const PrefillParams& params, const PrefillMaps& maps, int n_sms,
                          cudaStream_t stream) {
  if (params.n_tiles == 0) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(&PrefillAttention),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, PrefillShared::kBytes);
  if (error != cudaSuccess) return error;
  return LaunchOverlapped(&PrefillAttention, dim3(n_sms), PrefillTraits::kThreads, PrefillShared::kBytes,
                          stream, params, maps);
}

}  // namespace t6::cuda
