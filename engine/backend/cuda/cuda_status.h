// CUDA's errors as Status: the environment's fault, with the call that failed.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/base/status.h"

namespace t6::cuda {

inline Status FromCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  if (error == cudaErrorMemoryAllocation) {
    return ResourceExhausted("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error));
  }
  return Internal("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

}  // namespace t6::cuda

#define T6_RETURN_IF_CUDA_ERROR(call) T6_RETURN_IF_ERROR(::t6::cuda::FromCuda((call), #call))
