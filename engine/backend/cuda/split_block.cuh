// A block of a split product (split_product.h): what its warps do. Device code of Hopper only.
#pragma once

#include <algorithm>

#include "engine/backend/cuda/prefill_wgmma.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/split_product.h"
#include "engine/backend/cuda/split_ptx.cuh"

namespace t6::cuda {

// What the kernel takes: a call whose matrices are boxes of tensor maps.
struct SplitParams {
  static constexpr int kChunk = 64;  // of k, a stage of the ring: rows of 128 bytes
  static constexpr int kMostStages = 8;

  SkinnyCall call;
  int n_splits;                  // gridDim.x; gridDim.y is the tiles
  int each_chunks, more_chunks;  // a block's chunks of k; the first `more` blocks have one more
  int each_groups, more_groups;  // so with the groups of eight rows that it adds up
  int n_stages;
  bool pairs;    // two columns of a float32 row may be stored at once
  int received;  // where in shared memory what other blocks send lies: behind the ring
};

#if T6_PTX_HAS_SM90

// A block has a tile of output columns and a share of k. Weights are the product's M, 64 for each warpgroup;
// the input's rows its N. One warp more asks for stages of weights and input rows, another computes norms.
// Groups of eight rows belong to the cluster's blocks in turn: each block sends its sums of the others' rows
// to them, adds what it gets to its own, and writes.
//
// Between kernels nothing else runs, so what stands before the first stage and behind the last is short.
template <int kRows, int kGroups, Epilogue kEpilogue>
class SplitBlock {
 public:
  static constexpr int kConsumers = kGroups * 128;  // threads; behind them the two warps
  static constexpr int kProducer = kConsumers, kNormWarp = kConsumers + 32;
  static constexpr int kWeightBytes = kGroups * 64 * 128, kStageBytes = kWeightBytes + kRows * 128;
  static constexpr int kRowGroups = kRows / 8;
  // A thread adds up items: two neighbouring columns (without SwiGLU, also the two that are eight behind) of
  // two rows. A warpgroup has 64 in a group of rows.
  static constexpr int kGroupItems = kConsumers / 2;
  static constexpr int kChunk = SplitParams::kChunk;
  static constexpr int kConsumerBarrier = 1, kScaleBarrier = 2;
  static constexpr bool kIsSwiGlu = kEpilogue == Epilogue::kSwiGlu;
  static constexpr int kGroupColumns = kIsSwiGlu ? 32 : 64;

  struct Shared {
    float scale[kRows];
    alignas(8) uint64_t full[SplitParams::kMostStages], empty[SplitParams::kMostStages], sums;
  };
  static_assert(sizeof(Shared) <= 1024);

  __device__ SplitBlock(const SplitParams& p, Shared& shared, unsigned char* ring)
      : call_(p.call),
        p_(p),
        shared_(shared),
        ring_bytes_(ring),
        ring_(ptx::SharedAddress(ring)),
        n_splits_(p.n_splits),
        n_stages_(p.n_stages),
        tile_(blockIdx.y),
        rank_(blockIdx.x),
        n_owned_(p.each_groups + (rank_ < p.more_groups ? 1 : 0)),
        first_(rank_ * p.each_chunks + min(rank_, p.more_chunks)),
        n_chunks_(p.each_chunks + (rank_ < p.more_chunks ? 1 : 0)) {}

  __device__ void Run(const CUtensorMap* weights, const CUtensorMap* inputs) {
    if (threadIdx.x == kProducer) {
      InitBarriers();
#pragma unroll 1
      for (int i = 0; i < min(n_stages_, n_chunks_); ++i) AskForWeights(weights, i, i);
      ptx::PrefetchTensorMap(inputs);
    }
    ptx::LetDependentsLaunch();
    __syncthreads();  // the barriers are there
    if (n_splits_ > 1) ptx::ClusterArrive();
    ptx::WaitForPriorKernels();
    if (n_splits_ > 1) ptx::ClusterWait();  // for the others' barriers
    if (threadIdx.x < kConsumers) {
      Consume();
    } else if (threadIdx.x == kProducer) {
      Produce(weights, inputs);
    } else if (threadIdx.x >= kNormWarp) {
      Scale(threadIdx.x - kNormWarp);
      ptx::NamedBarrierArrive(kScaleBarrier, kConsumers + 32);
    }
  }

 private:
  __device__ static uint32_t Address(const uint64_t& barrier) { return ptx::SharedAddress(&barrier); }
  __device__ void InitBarriers() {
#pragma unroll 1
    for (int i = 0; i < n_stages_; ++i) {
      ptx::BarrierInit(Address(shared_.full[i]), 1);
      ptx::BarrierInit(Address(shared_.empty[i]), kGroups * 4);
    }
    ptx::BarrierInit(Address(shared_.sums), 1);
    ptx::BarrierInitFence();
    ptx::BarrierExpectBytes(Address(shared_.sums), (n_splits_ - 1) * n_owned_ * kConsumers * sizeof(float4));
  }

  // --- the producer, one thread
  // Of the block's `i`-th chunk, into a stage that is free.
  __device__ void AskForWeights(const CUtensorMap* weights, int i, int slot) {
    const int column = (first_ + i) * kChunk;
    const uint32_t full = Address(shared_.full[slot]), to = ring_ + slot * kStageBytes;
    const uint64_t policy = ptx::EvictFirstPolicy();
    ptx::BarrierExpectBytes(full, kStageBytes);
    if constexpr (kIsSwiGlu) {
      ptx::CopyBox(to, weights, column, 0, 0, tile_ * kGroups * 4, full, policy);
    } else {
      ptx::CopyBox(to, weights, column, tile_ * kGroups * 64, full, policy);
    }
  }
  __device__ void AskForInputs(const CUtensorMap* inputs, int i, int slot) {
    ptx::CopyBox(ring_ + slot * kStageBytes + kWeightBytes, inputs, (first_ + i) * kChunk, 0,
                 Address(shared_.full[slot]), ptx::EvictNormalPolicy());
  }
  __device__ void Produce(const CUtensorMap* weights, const CUtensorMap* inputs) {
    int slot = 0, parity = 1;
#pragma unroll 1
    for (int i = 0; i < n_chunks_; ++i) {
      if (i >= n_stages_) {
        ptx::BarrierWait(Address(shared_.empty[slot]), parity);
        AskForWeights(weights, i, slot);
      }
      AskForInputs(inputs, i, slot);
      if (++slot == n_stages_) slot = 0, parity ^= 1;
    }
  }

  // --- the norms of the owned rows, a warp: four lanes a row
  __device__ void Scale(int lane) {
    if (call_.squares == nullptr) return;
    constexpr int kLoads = 8;
#pragma unroll 1
    for (int i = 0; i < n_owned_; i += 2) {
      float square[2] = {};
#pragma unroll 1
      for (int first = lane % 4; first < call_.n_pieces; first += kLoads * 4) {
        float x[2][kLoads];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int row = ((i + k) * n_splits_ + rank_) * 8 + lane / 4;
          const float* pieces = call_.squares + static_cast<int64_t>(row) * call_.n_pieces;
          const bool exists = i + k < n_owned_ && row < call_.n_rows;
#pragma unroll
          for (int j = 0; j < kLoads; ++j) {
            const int piece = first + j * 4;
            x[k][j] = exists && piece < call_.n_pieces ? ptx::LoadChanging(pieces + piece) : 0.0f;
          }
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
#pragma unroll
          for (int j = 0; j < kLoads; ++j) square[k] += x[k][j];
        }
      }
      __syncwarp();
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        square[k] += __shfl_xor_sync(~0u, square[k], 1);
        square[k] += __shfl_xor_sync(~0u, square[k], 2);
        if (lane % 4 == 0 && i + k < n_owned_) {
          shared_.scale[(i + k) * 8 + lane / 4] =
              rsqrtf(square[k] / static_cast<float>(call_.norm_width) + call_.norm_eps);
        }
      }
    }
  }

  // --- the warpgroups. Loops that run once stay loops: a step has many kernels, whose code is fetched again.
  __device__ void Consume() {
    Item item(*this, threadIdx.x);
    typename Item::Sums old{};
    // The residual of the first item, before anything else: its latency is the first stages'.
    if constexpr (kEpilogue == Epilogue::kAdd) old = item.LoadOld();
    float c[kRowGroups * 4];
    Multiply(__shfl_sync(~0u, threadIdx.x / 128, 0), c);
    ptx::NamedBarrier(kConsumerBarrier, kConsumers);  // the ring is free
    Send(c);
    ptx::NamedBarrier(kScaleBarrier, kConsumers + 32);
    if (n_splits_ > 1) ptx::BarrierWait(Address(shared_.sums), 0);
#pragma unroll 1
    for (int i = threadIdx.x; i < n_owned_ * kGroupItems; i += kConsumers) {
      if (i >= kConsumers) {
        item = Item(*this, i);
        if constexpr (kEpilogue == Epilogue::kAdd) old = item.LoadOld();
      }
      item.Write(SumOf(i), old);
    }
  }

  __device__ void Multiply(int group, float (&c)[kRowGroups * 4]) const {
    int slot = 0, parity = 0;
#pragma unroll 1
    for (int i = 0; i < n_chunks_; ++i) {
      ptx::BarrierWait(Address(shared_.full[slot]), parity);
      const uint32_t stage = ring_ + slot * kStageBytes;
      const uint64_t weights = wgmma::Tile(stage + group * 64 * 128);
      const uint64_t inputs = wgmma::Tile(stage + kWeightBytes);
      wgmma::Fence();
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
        wgmma::MmaRows(c, weights + step * wgmma::kColumnStep, inputs + step * wgmma::kColumnStep,
                       (i | step) > 0);
      }
      wgmma::Commit();
      wgmma::Wait<1>();
      if (i > 0 && threadIdx.x % 32 == 0) {
        ptx::BarrierArrive(Address(shared_.empty[(slot == 0 ? n_stages_ : slot) - 1]));
      }
      if (++slot == n_stages_) slot = 0, parity ^= 1;
    }
    wgmma::Wait<0>();
    wgmma::Settle(c);
  }

  // A thread's four sums of a group of rows go where items find them in the order of their threads: those of
  // even columns before those of odd. Own sums lie in the ring, what other blocks send behind it.
  __device__ uint32_t Place() const {
    const int lane = threadIdx.x % 32;
    return (threadIdx.x - lane + lane % 4 + lane / 8 * 4 + lane / 4 % 2 * 16) * 16;
  }
  // Behind the ring lie, of every other block in their order, its sums of this block's groups.
  __device__ int SourceBytes() const {
    return (p_.each_groups + (p_.more_groups > 0 ? 1 : 0)) * kConsumers * 16;
  }
  __device__ void Send(const float (&c)[kRowGroups * 4]) const {
    const uint32_t place = Place(), received = ring_ + p_.received + place;
    const int source_bytes = SourceBytes();
    int owner = 0, offset = 0;
#pragma unroll
    for (int g = 0; g < kRowGroups; ++g) {
      const float4 x = make_float4(c[g * 4], c[g * 4 + 1], c[g * 4 + 2], c[g * 4 + 3]);
      if (owner == rank_) {
        *reinterpret_cast<float4*>(ring_bytes_ + offset + place) = x;
      } else {
        const uint32_t to = received + offset + (rank_ - (rank_ > owner ? 1 : 0)) * source_bytes;
        ptx::StoreInBlock(ptx::InBlock(to, owner), x, ptx::InBlock(Address(shared_.sums), owner));
      }
      if (++owner == n_splits_) owner = 0, offset += kConsumers * 16;
    }
  }

  // Of an item: even column, odd column, each as a thread had them in c.
  struct Sums {
    float4 even, odd;
  };
  // In the blocks' order, whoever adds: a row's sum does not depend on its place among the rows.
  __device__ Sums SumOf(int i) const {
    const int index = i / kGroupItems, item = i % kGroupItems;
    const unsigned char* own = ring_bytes_ + index * kConsumers * 16 + (item / 16 * 32 + item % 16) * 16;
    const unsigned char* other = own + p_.received;
    const int source_bytes = SourceBytes();
    Sums sums{};
#pragma unroll 4
    for (int source = 0; source < n_splits_; ++source) {
      const unsigned char* at = source == rank_ ? own : other;
      other += source == rank_ ? 0 : source_bytes;
      const float4 even = *reinterpret_cast<const float4*>(at);
      const float4 odd = *reinterpret_cast<const float4*>(at + 16 * 16);
      sums.even =
          make_float4(sums.even.x + even.x, sums.even.y + even.y, sums.even.z + even.z, sums.even.w + even.w);
      sums.odd = make_float4(sums.odd.x + odd.x, sums.odd.y + odd.y, sums.odd.z + odd.z, sums.odd.w + odd.w);
    }
    return sums;
  }

  class Item {
   public:
    using Sums = SplitBlock::Sums;
    __device__ Item(const SplitBlock& block, int i) : block_(&block), call_(&block.call_) {
      const int index = i / kGroupItems, item = i % kGroupItems;
      scale_row_ = index * 8 + item % 4 * 2;
      row_ = (index * block.n_splits_ + block.rank_) * 8 + item % 4 * 2;
      constexpr int kWarpColumns = kGroupColumns / 4;
      column_ = block.tile_ * kGroups * kGroupColumns + item / 16 * kWarpColumns + item / 4 % 4 * 2;
    }

    __device__ Sums LoadOld() const {
      const float2 a = LoadPair(0, 0), b = LoadPair(1, 0), c = LoadPair(0, 8), d = LoadPair(1, 8);
      return {make_float4(a.x, b.x, c.x, d.x), make_float4(a.y, b.y, c.y, d.y)};
    }

    __device__ void Write(Sums x, const Sums& old) const {
      if (call_->squares != nullptr) {
        const float2 scale = *reinterpret_cast<const float2*>(&block_->shared_.scale[scale_row_]);
        x.even = make_float4(x.even.x * scale.x, x.even.y * scale.y, x.even.z * scale.x, x.even.w * scale.y);
        x.odd = make_float4(x.odd.x * scale.x, x.odd.y * scale.y, x.odd.z * scale.x, x.odd.w * scale.y);
      }
      if constexpr (kIsSwiGlu) {
        StoreNarrow(call_->out, call_->out_stride, 0, 0, SwiGlu(x.even.x, x.even.z),
                    SwiGlu(x.odd.x, x.odd.z));
        StoreNarrow(call_->out, call_->out_stride, 1, 0, SwiGlu(x.even.y, x.even.w),
                    SwiGlu(x.odd.y, x.odd.w));
      } else {
        if constexpr (kEpilogue == Epilogue::kAdd) {
          x.even = make_float4(x.even.x + old.even.x, x.even.y + old.even.y, x.even.z + old.even.z,
                               x.even.w + old.even.w);
          x.odd =
              make_float4(x.odd.x + old.odd.x, x.odd.y + old.odd.y, x.odd.z + old.odd.z, x.odd.w + old.odd.w);
        }
        StorePair(0, 0, x.even.x, x.odd.x), StorePair(1, 0, x.even.y, x.odd.y);
        StorePair(0, 8, x.even.z, x.odd.z), StorePair(1, 8, x.even.w, x.odd.w);
        if constexpr (kEpilogue == Epilogue::kAdd) WriteStats(x);
      }
    }

   private:
    __device__ static float SwiGlu(float gate, float up) {
      return __fdividef(gate, 1.0f + __expf(-gate)) * up;
    }

    // Two columns are stored at once where rows have even strides: Launch sees to it.
    __device__ float2 LoadPair(int row, int column) const {
      row += row_, column += column_;
      const float* at = static_cast<const float*>(call_->out) + row * call_->out_stride + column;
      float2 x = make_float2(0.0f, 0.0f);
      if (row >= call_->n_rows) return x;
      if (column < call_->n) x.x = ptx::LoadChanging(at);
      if (column + 1 < call_->n) x.y = ptx::LoadChanging(at + 1);
      return x;
    }
    __device__ void StorePair(int row, int column, float even, float odd) const {
      row += row_, column += column_;
      if (row >= call_->n_rows || column >= call_->n) return;
      float* at = static_cast<float*>(call_->out) + row * call_->out_stride + column;
      if (block_->p_.pairs) {
        *reinterpret_cast<float2*>(at) = make_float2(even, odd);
      } else {
        at[0] = even;
        if (column + 1 < call_->n) at[1] = odd;
      }
    }
    __device__ void StoreNarrow(void* to, int stride, int row, int column, float even, float odd) const {
      row += row_, column += column_;
      if (row >= call_->n_rows || column >= call_->n) return;
      auto* at = static_cast<__nv_bfloat16*>(to) + row * stride + column;
      *reinterpret_cast<uint32_t*>(at) = ptx::PackBf16(even, odd);
    }
    // What the next norm needs. A warp has 32 columns of its rows.
    __device__ void WriteStats(const Sums& x) const {
      const RowStats& stats = call_->stats;
      StoreNarrow(stats.rows, stats.stride, 0, 0, x.even.x, x.odd.x);
      StoreNarrow(stats.rows, stats.stride, 1, 0, x.even.y, x.odd.y);
      StoreNarrow(stats.rows, stats.stride, 0, 8, x.even.z, x.odd.z);
      StoreNarrow(stats.rows, stats.stride, 1, 8, x.even.w, x.odd.w);
      float first = x.even.x * x.even.x + x.odd.x * x.odd.x + x.even.z * x.even.z + x.odd.z * x.odd.z;
      float second = x.even.y * x.even.y + x.odd.y * x.odd.y + x.even.w * x.even.w + x.odd.w * x.odd.w;
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        first += __shfl_xor_sync(~0u, first, lanes);
        second += __shfl_xor_sync(~0u, second, lanes);
      }
      const int piece = column_ / kSplitPieceColumns;
      if (threadIdx.x % 32 >= 4 || piece >= stats.n_pieces) return;
      float* at = stats.squares + row_ * stats.n_pieces + piece;
      if (row_ < call_->n_rows) at[0] = first;
      if (row_ + 1 < call_->n_rows) at[stats.n_pieces] = second;
    }

    const SplitBlock* block_;
    const SkinnyCall* call_;
    int scale_row_, row_, column_;
  };

  const SkinnyCall& call_;
  const SplitParams& p_;
  Shared& shared_;
  unsigned char* const ring_bytes_;
  const uint32_t ring_;
  const int n_splits_, n_stages_;
  const int tile_, rank_;
  const int n_owned_;           // groups of rows: the rank_-th and every n_splits_-th behind it
  const int first_, n_chunks_;  // of k
};

#endif

}  // namespace t6::cuda
