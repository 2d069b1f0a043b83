// What every part of the rows kernels shares: their parameters, compile-time shapes and layouts of shared
// memory. d = 64.
#pragma once

#include "engine/backend/cuda/decode_params.cuh"
#include "engine/backend/cuda/rows_attention.h"

namespace t6::cuda {

inline constexpr int kRowsMaxShared = 227 << 10;

// Blocks of up to 16 or 32 rows (FactoredConsumer): a producer warp streams halves of pages into a ring that
// three consumer warpgroups share, each with heads of its own.
template <int kRankT, int kRowsT>
struct FactoredTraits {
  static constexpr int kRank = kRankT;           // R_K = R_V
  static constexpr int kRows = kRowsT;           // of a block, 16 or 32
  static constexpr int kGroups = 3;              // consumer warpgroups
  static constexpr int kHeadWarps = kRows / 16;  // warps of a head
  static constexpr int kGroupHeads = 4 / kHeadWarps;
  static constexpr int kBlockHeads = kGroups * kGroupHeads;
  static constexpr int kThreads = (kGroups + 1) * 128;
  // Of a thread: together what the kernel starts with, a share of the multiprocessor's 64 Ki.
  static constexpr int kConsumerRegisters = 160, kProducerRegisters = 32;
  static constexpr int kRankBytes = 64 * 128;                                  // one rank of B in a page
  static constexpr int kHeadBytes = (kBlockHeads * 128 + 1023) / 1024 * 1024;  // one rank of A, padded
  static constexpr int kStageBytes = kRank * (kRankBytes + kHeadBytes);
  static constexpr int kMaxStages = 12;
  static constexpr int kBarrierBytes = 1024;
  static constexpr int kStages = (kRowsMaxShared - kBarrierBytes) / kStageBytes < kMaxStages
                                     ? (kRowsMaxShared - kBarrierBytes) / kStageBytes
                                     : kMaxStages;
  static_assert(kStages >= 4);  // a warpgroup holds three
  static constexpr int kSharedBytes = kBarrierBytes + kStages * kStageBytes;
};

// Blocks of up to 64 rows (ExpandedConsumer): an expander warpgroup and two consumer warpgroups.
template <int kRankT>
struct ExpandedTraits {
  static constexpr int kRank = kRankT;
  static constexpr int kGroups = 2, kGroupHeads = 2;
  static constexpr int kBlockHeads = kGroups * kGroupHeads;
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kConsumerRegisters = 224, kExpanderRegisters = 56;
  static constexpr int kRankBytes = 64 * 128;
  static constexpr int kHeadBytes = 1024;                                 // one rank of A, padded
  static constexpr int kFactorBytes = kRank * (kRankBytes + kHeadBytes);  // half a page as it was copied
  static constexpr int kTileBytes = 64 * 128;                             // keys or values of a page and head
  static constexpr int kStageBytes = kBlockHeads * kTileBytes;
  static constexpr int kBarrierBytes = 1024;
  // What is copied ahead covers the latency of memory; expanded tiles need no more than two pages.
  static constexpr int kFactorStages = kRank <= 2 ? 5 : kRank == 3 ? 3 : 2;
  static constexpr int kStages =
      (kRowsMaxShared - kBarrierBytes - kFactorStages * kFactorBytes) / kStageBytes;
  static_assert(kStages >= 4);  // a warpgroup holds three
  static constexpr int kSharedBytes = kBarrierBytes + kStages * kStageBytes + kFactorStages * kFactorBytes;
};

// Addresses in shared memory: barriers, the ring, and where there is an expander the ring that it reads.
template <class T>
struct RowsShared {
  uint32_t base;

  __device__ explicit RowsShared(unsigned char* memory) : base(ptx::SharedAddress(memory)) {}
  __device__ uint32_t Full(int i) const { return base + i * 8; }
  __device__ uint32_t Empty(int i) const { return base + (T::kStages + i) * 8; }
  __device__ uint32_t Stage(int i) const { return base + T::kBarrierBytes + i * T::kStageBytes; }
  __device__ uint32_t FactorsFull(int i) const { return base + (2 * T::kStages + i) * 8; }
  __device__ uint32_t FactorsEmpty(int i) const { return base + (2 * T::kStages + T::kFactorStages + i) * 8; }
  __device__ uint32_t Factors(int i) const { return Stage(T::kStages) + i * T::kFactorBytes; }
};

}  // namespace t6::cuda
