#include "engine/backend/cuda/decode_instances.h"
#include "engine/backend/cuda/decode_kernel.cuh"

namespace t6::cuda {
namespace {

template <int kDim, int kWarpTokens, int kMaxWarps, int kBlocks>
DecodeInstance Instance() {
  return MakeDecodeInstance<DecodeTraits<3, kDim, kWarpTokens, kMaxWarps, kBlocks>>();
}

}  // namespace

std::span<const DecodeInstance> DecodeInstancesOfRank3() {
  static const DecodeInstance kInstances[] = {
      Instance<64, 16, 13, 1>(),   // to 48 heads
      Instance<64, 32, 11, 1>(),   // to 80
      Instance<64, 64, 9, 1>(),    // to 128
      Instance<32, 16, 13, 1>(),   // to 48
      Instance<32, 32, 11, 1>(),   // to 80
      Instance<32, 64, 9, 1>(),    // to 128
      Instance<128, 32, 11, 1>(),  // to 80
      Instance<128, 64, 9, 1>(),   // to 128
  };
  return kInstances;
}

}  // namespace t6::cuda
