#include "engine/backend/cuda/decode_instances.h"
#include "engine/backend/cuda/decode_kernel.cuh"

namespace t6::cuda {
namespace {

template <int kDim, int kWarpTokens, int kMaxWarps, int kBlocks>
DecodeInstance Instance() {
  using Traits = DecodeTraits<1, kDim, kWarpTokens, kMaxWarps, kBlocks>;
  return {1, kDim, kWarpTokens, kMaxWarps, kBlocks, reinterpret_cast<const void*>(&DecodeAttention<Traits>)};
}

}  // namespace

std::span<const DecodeInstance> DecodeInstancesOfRank1() {
  static const DecodeInstance kInstances[] = {
      Instance<64, 16, 9, 2>(),   // to 32 heads
      Instance<64, 16, 13, 1>(),  // to 48
  };
  return kInstances;
}

}  // namespace t6::cuda
