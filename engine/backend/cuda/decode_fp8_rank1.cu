#include "engine/backend/cuda/decode_fp8_hopper.cuh"

template <>
std::span<const t6::cuda::Fp8HopperInstance> t6::cuda::Fp8HopperInstances<1>() {
  return MakeFp8HopperInstances<1>();
}
