#include "engine/backend/cuda/decode_instances.cuh"

namespace t6::cuda {

// Of the ranks and the width that official models have.
std::span<const DecodeInstance> Fp8DecodeInstances() {
  static const std::array kInstances = {
      Instance<1, 64, 16, 13, true>(), Instance<1, 64, 32, 11, true>(), Instance<1, 64, 64, 9, true>(),
      Instance<2, 64, 16, 13, true>(), Instance<2, 64, 32, 11, true>(), Instance<2, 64, 64, 9, true>(),
  };
  return kInstances;
}

std::span<const Fp8HopperInstance> Fp8HopperInstancesOfRank(int rank) {
  if (rank == 1) return Fp8HopperInstances<1>();
  if (rank == 2) return Fp8HopperInstances<2>();
  return {};
}

}  // namespace t6::cuda
