#include <cuda_runtime_api.h>

#include "engine/backend/cuda/chip.h"

namespace t6::cuda {
namespace {

__global__ void Probe() {}

ChipCode Ask() {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, Probe) != cudaSuccess) {
    cudaGetLastError();  // or the next launch would report it
    return ChipCode::kNone;
  }
  // Code of 9.0 in this build is that of sm_90a; other chips run what was compiled or translated for 8.0.
  return attributes.binaryVersion == 90 && attributes.ptxVersion == 90 ? ChipCode::kHopper
                                                                       : ChipCode::kPortable;
}

}  // namespace

ChipCode CodeForThisChip() {
  static const ChipCode code = Ask();
  return code;
}

}  // namespace t6::cuda
