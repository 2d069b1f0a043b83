// The compiled decode kernels. One file per rank, so that they compile side by side.
#pragma once

#include <span>

namespace t6::cuda {

struct DecodeInstance {
  int rank, head_dim;
  bool fp8;                     // of the pages
  int warp_tokens;              // see DecodeTraits
  int max_warps;                // the producer included; it fixes the registers that a thread may have
  const void* kernel;           // with tensor maps, sm_90a
  const void* portable_kernel;  // sm_80 and up
};

// In order of preference where several fit; empty for a rank without kernels.
std::span<const DecodeInstance> DecodeInstancesOfRank(int rank);  // bfloat16 pages
std::span<const DecodeInstance> Fp8DecodeInstances();

// One rank's, each compiled in a file of its own.
template <int kRank>
std::span<const DecodeInstance> DecodeInstances();
template <>
std::span<const DecodeInstance> DecodeInstances<1>();
template <>
std::span<const DecodeInstance> DecodeInstances<2>();
template <>
std::span<const DecodeInstance> DecodeInstances<3>();
template <>
std::span<const DecodeInstance> DecodeInstances<4>();

}  // namespace t6::cuda
