// What every part of the rows kernels shares: their parameters, compile-time shapes and layouts of shared
// memory. d = 64.
#pragma once

#include "engine/backend/cuda/decode_params.cuh"
#include "engine/backend/cuda/rows_attention.h"
#if T6_PTX_HAS_SM90
#include "engine/backend/cuda/rows_ptx.cuh"
#endif

namespace t6::cuda {

inline constexpr int kRowsMaxShared = 227 << 10;

// Of number d of a row and head in the partial results of these kernels: d and d + 8 of every 16 are
// neighbours, since one lane of a product has both.
__device__ inline int PlaceInPartial(int d) { return (d & ~15) + (d & 7) * 2 + (d >> 3 & 1); }

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
  static constexpr int kCluster = 1;
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

// Blocks of up to kRows rows from expanded keys and values: two weigher warpgroups, each with heads of its
// own, a collector warpgroup for all heads, and four more warps: producers of the stages, halves of pages,
// one for the weighers' and one for the collector's, and for each weigher one that fences its weights.
template <int kRankT, int kRowsT, int kHeadsT>
struct ExpandedTraits {
  static constexpr int kRank = kRankT;         // R_K = R_V
  static constexpr int kRows = kRowsT;         // of a block, a multiple of 8
  static constexpr int kBlockHeads = kHeadsT;  // of a block's task
  // Blocks that have the same pages at the same time, for heads of their own: each copies its part of B to
  // all.
  static constexpr int kCluster = 2;
  static constexpr int kWeighers = 2, kOwnHeads = kBlockHeads / kWeighers;
  static constexpr int kThreads = (kWeighers + 2) * 128;
  // Of a thread: together what the kernel starts with, a share of the multiprocessor's 64 Ki.
  static constexpr int kWeigherRegisters = kRank > 3 || (kRank > 2 && kRows > 56) ? 136
                                           : kRank > 2 || kRows > 56              ? 144
                                                                                  : 152;
  static constexpr int kProducerRegisters = 24;
  static constexpr int kCollectorRegisters = 512 - kProducerRegisters - kWeighers * kWeigherRegisters;
  static constexpr int kRankBytes = 64 * 128;                                  // one rank of B in a page
  static constexpr int kHeadBytes = (kBlockHeads * 128 + 1023) / 1024 * 1024;  // one rank of A, padded
  static constexpr int kStageBytes = kRank * (kRankBytes + kHeadBytes);
  static constexpr int kBarrierBytes = 1024;
  static constexpr int kTileBytes = kRows * 128;  // queries of a head, or weights of a head and a page
  // Of each weigher: those of one page follow each other, so that a slot of the ring is a page's.
  static constexpr int kWeightSlots = kRank > 3 ? 1 : 2;
  static constexpr int kWeightTiles = kWeightSlots * kOwnHeads;
  // Bases of two tasks, warps' sums, and four warps' greatest scores of one head of each weigher.
  static constexpr int kNumbers = (2 + 4) * kBlockHeads * kRows + kWeighers * 4 * kRows;
  static constexpr int kNumberBytes = (kNumbers * 4 + 1023) / 1024 * 1024;
  static constexpr int kRingBytes =
      kRowsMaxShared - kBarrierBytes - kNumberBytes - (kBlockHeads + kWeighers * kWeightTiles) * kTileBytes;
  static constexpr int kMaxStages = 12;
  static constexpr int kStages =
      kRingBytes / kStageBytes < kMaxStages ? kRingBytes / kStageBytes / 2 * 2 : kMaxStages;
  static_assert(kStages >= 4);
  static constexpr int kSharedBytes = kRowsMaxShared - kRingBytes + kStages * kStageBytes;
};
// The blocks of a cluster have the same tasks, each for heads of its own.
template <class T>
__device__ RowsTask TaskOfBlock(const RowsParams& p, int index) {
  RowsTask task = p.tasks[index];
  task.head += static_cast<int>(blockIdx.x % T::kCluster) * T::kBlockHeads;
  return task;
}
inline constexpr int kRowsCollectorBarrier = 1, kRowsWeigherBarrier = 2;  // and 3

// A lane's number as what no compiler can form again: the assembler would read it from its special register
// wherever it is used, which takes 30 clocks.
__device__ inline int KeptLane(int lane) { return __shfl_sync(~0u, lane, lane); }

// Addresses in shared memory: barriers and the ring.
template <class T>
struct RowsShared {
  uint32_t base;

  __device__ explicit RowsShared(unsigned char* memory) : base(ptx::SharedAddress(memory)) {}
  __device__ uint32_t Full(int i) const { return base + i * 8; }
  __device__ uint32_t Empty(int i) const { return base + (T::kStages + i) * 8; }
  __device__ uint32_t Stage(int i) const { return base + T::kBarrierBytes + i * T::kStageBytes; }
};

// Behind them: queries of all heads, tiles of weights, numbers.
template <class T>
struct ExpandedShared : RowsShared<T> {
  float* numbers;
  volatile int* again;  // weights were too much

  __device__ explicit ExpandedShared(unsigned char* memory)
      : RowsShared<T>(memory),
        numbers(reinterpret_cast<float*>(memory + (Weights(T::kWeighers, 0) - this->base))),
        again(reinterpret_cast<int*>(memory + T::kBarrierBytes) - 1) {}
  // All blocks of the cluster are to do their tasks again.
  __device__ void DoAgain() const {
    for (int i = 0; i < T::kCluster; ++i) ptx::StoreInCluster(this->base + T::kBarrierBytes - 4, i, 1);
  }
  __device__ uint32_t SumsFull() const { return this->base + 2 * T::kStages * 8; }
  __device__ uint32_t SumsEmpty() const { return SumsFull() + 8; }
  __device__ uint32_t WeightsFull(int weigher, int i) const {
    return SumsFull() + (2 + weigher * T::kWeightTiles + i) * 8;
  }
  __device__ uint32_t WeightsEmpty(int weigher, int i) const {
    return WeightsFull(T::kWeighers + weigher, i);
  }
  __device__ uint32_t WeightsStored(int weigher, int i) const {
    return WeightsFull(2 * T::kWeighers + weigher, i);
  }
  __device__ uint32_t Query(int head) const { return this->Stage(T::kStages) + head * T::kTileBytes; }
  __device__ uint32_t Weights(int weigher, int i) const {
    return Query(T::kBlockHeads + weigher * T::kWeightTiles + i);
  }
  // By pairs of rows.
  __device__ float2* Row(int i) const { return reinterpret_cast<float2*>(numbers + i * T::kRows); }
  __device__ float2* Bases(int slot, int head) const { return Row(slot * T::kBlockHeads + head); }
  __device__ float2* Sums(int warp, int head) const { return Row((2 + warp) * T::kBlockHeads + head); }
  __device__ float2* Exchange(int weigher, int warp) const {
    return Row((2 + 4) * T::kBlockHeads + weigher * 4 + warp);
  }
  __device__ float Base(int slot, int head, int row) const {
    return reinterpret_cast<const float*>(Bases(slot, head))[row];
  }
  __device__ float& Sum(int warp, int head, int row) const {
    return reinterpret_cast<float*>(Sums(warp, head))[row];
  }
};

}  // namespace t6::cuda
