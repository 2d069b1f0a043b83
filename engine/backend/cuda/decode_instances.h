// The compiled decode kernels. One file per rank, so that they compile side by side.
#pragma once

#include <span>

namespace t6::cuda {

struct DecodeInstance {
  int rank, head_dim;
  int warp_tokens;  // see DecodeTraits
  int max_warps;    // the producer included; with blocks_per_sm it fixes the registers a thread may have
  int blocks_per_sm;
  const void* kernel;
};

// In order of preference where several fit.
std::span<const DecodeInstance> DecodeInstancesOfRank1();
std::span<const DecodeInstance> DecodeInstancesOfRank2();
std::span<const DecodeInstance> DecodeInstancesOfRank3();
std::span<const DecodeInstance> DecodeInstancesOfRank4();

}  // namespace t6::cuda
