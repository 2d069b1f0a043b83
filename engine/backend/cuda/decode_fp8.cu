#include "engine/backend/cuda/decode_instances.cuh"

// Of the ranks and the width that official models have.
std::span<const t6::cuda::DecodeInstance> t6::cuda::Fp8DecodeInstances() {
  static const std::array kInstances = {
      Instance<1, 64, 16, 13, true>(), Instance<1, 64, 32, 11, true>(), Instance<1, 64, 64, 9, true>(),
      Instance<2, 64, 16, 13, true>(), Instance<2, 64, 32, 11, true>(), Instance<2, 64, 64, 9, true>(),
  };
  return kInstances;
}
