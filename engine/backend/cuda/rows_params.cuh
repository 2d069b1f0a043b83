// What every part of the rows kernel shares: its parameters, its compile-time shape, the layout of shared
// memory.
#pragma once

#include "engine/backend/cuda/decode_params.cuh"
#include "engine/backend/cuda/rows_attention.h"

namespace t6::cuda {

inline constexpr int kRowsMaxStages = 12;

template <int kRankT, int kDimT, int kRowsT, int kGroupsT, int kHeadsT, bool kFactoredT = false>
struct RowsTraits {
  static constexpr int kRank = kRankT;      // R_K = R_V
  static constexpr int kDim = kDimT;        // d
  static constexpr int kRows = kRowsT;      // query rows of a task: N of both products
  static constexpr int kGroups = kGroupsT;  // consumer warpgroups, 2 or 3
  static constexpr int kHeads = kHeadsT;    // of a warpgroup
  // Scores and values from factors, with the rows of a warpgroup's heads side by side as N, instead of
  // expanded keys and values for each head: R times the products and no expansion, for few rows.
  static constexpr bool kFactored = kFactoredT;
  static constexpr int kThreads = (kGroups + 1) * 128;
  // Of a thread: together what the kernel starts with, a share of the multiprocessor's 64 Ki.
  static constexpr int kConsumerRegisters = kGroups == 2 ? 240 : 160;
  static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32;
  // Two warpgroups multiply in turns, so that the softmax of one runs beside the products of the other. Three
  // are enough to fill each other's gaps.
  static constexpr bool kTakesTurns = kGroups == 2 && !kFactored;
  static constexpr int kBlockHeads = kGroups * kHeads;
  static constexpr int kSteps = kDim / 16;                                     // of the product over d
  static constexpr int kTiles = (kDim + 63) / 64;                              // of 64 numbers of d
  static constexpr int kRankBytes = 64 * kDim * 2;                             // one rank of B in a page
  static constexpr int kHeadBytes = (kBlockHeads * 128 + 1023) / 1024 * 1024;  // one rank of A, padded
  static constexpr int kStageBytes = kRank * (kRankBytes + kHeadBytes);
  static constexpr int kTileBytes = kRows * 128;  // [kRows][64] of a query or of weights
  static constexpr int kQueryBytes = kTiles * kTileBytes;
  // Shared memory, in this order; the rest is stages.
  static constexpr int kWeightsOffset = kBlockHeads * kQueryBytes;
  static constexpr int kScratchOffset = kWeightsOffset + (kFactored ? kRank : 1) * kBlockHeads * kTileBytes;
  static constexpr int kMaximaOffset = kScratchOffset + kBlockHeads * 4 * kRows * 4;
  static constexpr int kBarrierOffset = kMaximaOffset + kBlockHeads * kRows * 2;
  static constexpr int kRingOffset = (kBarrierOffset + (2 * kRowsMaxStages + 2) * 8 + 1023) / 1024 * 1024;
  static constexpr int kMaxShared = 227 << 10;
  static constexpr int kStages = (kMaxShared - kRingOffset) / kStageBytes < kRowsMaxStages
                                     ? (kMaxShared - kRingOffset) / kStageBytes
                                     : kRowsMaxStages;
  static_assert(kStages >= 3);  // a warpgroup holds two
  static constexpr int kSharedBytes = kRingOffset + kStages * kStageBytes;
};

// Addresses in shared memory.
template <class T>
struct RowsShared {
  uint32_t base;
  float* scratch;    // [kBlockHeads][4 warps][kRows]
  uint32_t* maxima;  // [kBlockHeads][4][kRows / 8] pairs of bfloat16: rows 8 j + 2 i and the next in [i][j]

  __device__ explicit RowsShared(unsigned char* memory)
      : base(ptx::SharedAddress(memory)),
        scratch(reinterpret_cast<float*>(memory + T::kScratchOffset)),
        maxima(reinterpret_cast<uint32_t*>(memory + T::kMaximaOffset)) {}
  __device__ uint32_t* Maxima(int head) const { return maxima + head * (T::kRows / 2); }
  __device__ uint32_t Query(int head) const { return base + head * T::kQueryBytes; }
  __device__ uint32_t Weights(int head) const { return base + T::kWeightsOffset + head * T::kTileBytes; }
  __device__ uint32_t Stage(int i) const { return base + T::kRingOffset + i * T::kStageBytes; }
  __device__ uint32_t Full(int i) const { return base + T::kBarrierOffset + i * 8; }
  __device__ uint32_t Empty(int i) const { return base + T::kBarrierOffset + (kRowsMaxStages + i) * 8; }
  __device__ uint32_t QueryFull() const { return base + T::kBarrierOffset + 2 * kRowsMaxStages * 8; }
  __device__ uint32_t QueryEmpty() const { return QueryFull() + 8; }
};

}  // namespace t6::cuda
