// The compiled decode kernels. One file per rank, so that they compile side by side.
#pragma once

#include <span>

namespace t6::cuda {

struct DecodeInstance {
  int rank, head_dim;
  bool fp8;                     // of the pages
  int warp_tokens;              // see DecodeTraits
  int max_warps;                // the producer included; it fixes the registers that a thread may have
  bool combines_beside;         // leaves registers for a block of the combine
  const void* kernel;           // with tensor maps, sm_90a; null for fp8 pages
  const void* portable_kernel;  // sm_80 and up
};

// In order of preference where several fit; empty for a rank without kernels.
std::span<const DecodeInstance> DecodeInstancesOfRank(int rank);  // bfloat16 pages
std::span<const DecodeInstance> Fp8DecodeInstances();

// Over fp8 pages on Hopper (decode_fp8_hopper.cuh), the smallest first.
struct Fp8HopperInstance {
  int max_heads, n_threads;
  int factor_offset, exchange_bytes;  // of shared memory behind the ring; the first of the second
  const void* kernel;
};
std::span<const Fp8HopperInstance> Fp8HopperInstancesOfRank(int rank);

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
template <int kRank>
std::span<const Fp8HopperInstance> Fp8HopperInstances();
template <>
std::span<const Fp8HopperInstance> Fp8HopperInstances<1>();
template <>
std::span<const Fp8HopperInstance> Fp8HopperInstances<2>();

}  // namespace t6::cuda
