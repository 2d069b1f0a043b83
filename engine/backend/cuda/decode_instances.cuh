// The decode kernels of one rank: which shapes, and what each may use of a multiprocessor.
#pragma once

#include <array>

#include "engine/backend/cuda/decode_instances.h"
#include "engine/backend/cuda/decode_kernel.cuh"

namespace t6::cuda {

template <int kRank, int kDim, int kWarpTokens, int kMaxWarps, bool kFp8 = false>
DecodeInstance Instance() {
  return MakeDecodeInstance<DecodeTraits<kRank, kDim, kWarpTokens, kMaxWarps, kFp8>>();
}

template <int kRank>
std::span<const DecodeInstance> MakeDecodeInstances() {
  static const std::array kInstances = {
      Instance<kRank, 64, 16, 13>(),   // to 48 heads
      Instance<kRank, 64, 32, 11>(),   // to 80
      Instance<kRank, 64, 64, 9>(),    // to 128
      Instance<kRank, 32, 16, 13>(),   // to 48
      Instance<kRank, 32, 32, 11>(),   // to 80
      Instance<kRank, 32, 64, 9>(),    // to 128
      Instance<kRank, 128, 32, 11>(),  // to 80
      Instance<kRank, 128, 64, 9>(),   // to 128
  };
  return kInstances;
}

}  // namespace t6::cuda
