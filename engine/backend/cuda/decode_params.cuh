// What every part of the decode kernel shares: its parameters, its compile-time shape, the layout of shared
// memory.
#pragma once

#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {

// What the kernel reads besides the tensor maps.
struct DecodeParams {
  DecodePlan plan;
  const int32_t* page_ids;
  void* pages;
  const float* qkv;
  const float* cos;
  const float* sin;
  DecodePartials partials;
  AttentionOutput out;
  int n_heads, head_tiles;
  int rank_q, rotary_dim, qkv_stride;
  int half_rows, stage_bytes, n_stages, first_in_flight, max_in_flight;
  float query_scale;  // log2(e) and every factor of the logits
  bool head_norm;     // then the combine writes all outputs
  bool stores;        // the new tokens' factors
};

inline constexpr int kRingAlignment = 1024;  // of the copies' swizzle
inline constexpr int kMaxStages = 16;
inline constexpr int kTileHeads = 16;
inline constexpr int kCombineRegisters = 64;
inline constexpr int kConsumerBarrier = 1;
inline constexpr float kRescaleAbove = 8.0f;  // powers of two that weights may exceed 1 by before a rescale
inline constexpr float kNoMax = -1e30f;       // finite, or a fully masked group would form inf - inf

DecodeParams MakeDecodeParams(const DecodeCall& call);

// Of 16 heads, that a block attends with.
struct HeadTiles {
  int first, count;
};

template <int kRankT, int kDimT, int kWarpTokensT, int kMaxWarpsT, bool kFp8T = false>
struct DecodeTraits {
  static constexpr int kRank = kRankT;              // R_K = R_V
  static constexpr int kDim = kDimT;                // d
  static constexpr bool kFp8 = kFp8T;               // of the pages; else bfloat16
  static constexpr bool kTileQuery = false;         // as an operand in shared memory
  static constexpr int kWarpTokens = kWarpTokensT;  // of each page, to a warp
  static constexpr int kTokenGroups = 64 / kWarpTokens;
  static constexpr int kQueryPasses = kWarpTokens / 16;  // of four heads, by a warp that forms its queries
  static constexpr int kMaxThreads = kMaxWarpsT * 32;
  // A quarter of a multiprocessor has 512 registers of every lane. Where the block's warps do with fewer,
  // each quarter keeps enough for one of the combine's.
  static constexpr bool kCombineBeside = kDim == 64 && kRank <= 2 && kWarpTokens <= 32 && !kFp8;
  static constexpr int kQuarterWarps = (kMaxWarpsT + 3) / 4;
  static constexpr int kMaxRegisters =
      (512 - (kCombineBeside ? kCombineRegisters : 0)) / kQuarterWarps / 8 * 8;
  static constexpr int kSteps = kDim / 16;          // of a product over d, or pairs of its output tiles
  static constexpr int kGroups = kWarpTokens / 16;  // of 16 tokens
  static constexpr int kRankBytes = 64 * kDim * (kFp8 ? 1 : 2);  // one rank of B
  static constexpr int kHeadOffset = kRank * kRankBytes;         // A behind B
  // Powers of two: what the greatest weight starts at, and how far above 1 it may get before a rescale. Half
  // precision ends at 16, and at the bottom long before bfloat16 does.
  static constexpr float kWeightBits = kFp8 ? 7.0f : 0.0f;
  static constexpr float kRescaleAbove = kWeightBits + t6::cuda::kRescaleAbove;

  // Where a warp's result has a number, in floats: eight neighbours change places by the row, so that
  // fragments' stores are free of bank conflicts.
  __device__ static constexpr int MergeOffset(int row, int column) {
    constexpr int kTurns = kDim < 64 ? kDim / 8 : 8;
    return row * kDim + (column ^ (row % kTurns * 8));
  }
};

// Shared memory behind the ring of stages. The query and the warps' results are never alive at once.
template <class T>
struct Exchange {
  uint32_t barriers[2 * kMaxStages * 2];  // full, then empty, 8 bytes each
  // followed by: float merge[n_warps][16][kDim], float2 max_sum[n_warps][16]
  static constexpr int kWarpBytes = 16 * (T::kDim * 4 + 8);
};

// The ring's place and turn. Producer and consumers each keep one, in step.
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance(int n_stages) {
    if (++stage == n_stages) stage = 0, parity ^= 1;
  }
};

template <class T>
struct BlockShared {
  unsigned char* ring;
  Exchange<T>* exchange;
  uint32_t ring_address, barrier_address;

  __device__ BlockShared(unsigned char* base, int ring_bytes)
      : ring(base), exchange(reinterpret_cast<Exchange<T>*>(base + ring_bytes)) {
    ring_address = ptx::SharedAddress(ring);
    barrier_address = ptx::SharedAddress(exchange->barriers);
  }
  __device__ uint32_t Full(int stage) const { return barrier_address + stage * 8; }
  __device__ uint32_t Empty(int stage) const { return barrier_address + (kMaxStages + stage) * 8; }
  __device__ float* merge() const { return reinterpret_cast<float*>(exchange + 1); }
  __device__ float2* max_sum(int n_warps) const {
    return reinterpret_cast<float2*>(merge() + n_warps * 16 * T::kDim);
  }
};
}  // namespace t6::cuda
