#include "engine/backend/cuda/decode_instances.cuh"

template <>
std::span<const t6::cuda::DecodeInstance> t6::cuda::DecodeInstances<1>() {
  return MakeDecodeInstances<1>();
}
