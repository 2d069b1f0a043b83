// The last warpgroup of the rows kernel on expanded keys and values: out^T += V^T W^T for all heads, with
// values expanded from factors in registers, as the product's left operand of 64 numbers of d, and the
// weighers' weights from shared memory. Also what becomes of the results.
#pragma once

#include "engine/backend/cuda/decode_consumer.cuh"
#include "engine/backend/cuda/prefill_wgmma.cuh"
#include "engine/backend/cuda/rows_params.cuh"

namespace t6::cuda {

template <class T>
class RowsCollector {
 public:
  __device__ RowsCollector(const RowsParams& p, const ExpandedShared<T>& shared, int thread)
      : p_(p), shared_(shared), warp_(thread / 32), lane_(KeptLane(thread % 32)) {
    const int row = lane_ & 7, low = (lane_ >> 3) & 1, high = lane_ >> 4;
    value_offset_ = TokenRows<64>::Offset(high * 8 + row, 0) ^ ((warp_ * 2 + low) << 4);
    head_chunk_ = (lane_ >> 3) << 4;
  }

  __device__ void Run(bool again) {
    const int end = p_.block_begin[blockIdx.x / T::kCluster + 1];
    for (int index = p_.block_begin[blockIdx.x / T::kCluster]; index < end; ++index, ++n_tasks_) {
      const RowsTask task = TaskOfBlock<T>(p_, index);
      if (again) PassOver(task);
#pragma unroll
      for (int h = 0; h < kH; ++h) {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) out_[h][i] = 0.0f;
      }
      int rest = task.n_tokens - task.first_token;  // of tokens, from the page on
      is_first_ = true;
      LoadPage(rest);
#pragma unroll 1
      for (int page = 0; page < task.n_pages; ++page) {
        CollectPage();
        rest -= 64;
        if (page + 1 < task.n_pages) LoadPage(rest);
      }
      wgmma::Wait<0>();
#pragma unroll
      for (int h = 0; h < kH; ++h) wgmma::Settle(out_[h]);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) wgmma::Settle(value_[0][k]), wgmma::Settle(value_[1][k]);
      GiveBack(kH - 1, old_slot_);
      ptx::ArriveInCluster<T::kCluster>(shared_.Empty(old_stage_), lane_);
      Finish(task);
    }
  }

 private:
  static constexpr int kN = T::kRows, kH = T::kBlockHeads, kR = T::kRank;
  static constexpr uint32_t kColumnStep = wgmma::kColumnStep;
  static constexpr int kParts = 2, kSteps = 4 / kParts;  // of a tile: groups of products

  __device__ void Arrive(uint32_t barrier) {
    if (lane_ == 0) ptx::BarrierArrive(barrier);
  }
  // Stages of keys and values take turns: a page is two.
  __device__ int Stage() const { return 2 * at_.stage + 1; }
  __device__ void WaitFull() { ptx::BarrierWait(shared_.Full(Stage()), at_.parity); }
  __device__ void AdvancePage() {
    old_stage_ = Stage(), old_slot_ = from_.stage;
    at_.Advance(T::kStages / 2), from_.Advance(T::kWeightSlots);
  }
  // The weigher looks for bases alone.
  __device__ void PassOver(const RowsTask& task) {
    for (int page = 0; page < task.n_pages; ++page) {
      WaitFull();
      __syncwarp();  // or a lane could miss the stage's whole turn
      ptx::ArriveInCluster<T::kCluster>(shared_.Empty(Stage()), lane_);
      at_.Advance(T::kStages / 2);
    }
  }
  // A of one head, of a part of the tokens: matrices whose rows are all the same.
  __device__ void LoadHeadFactors(int h, int part) {
    const uint32_t row = shared_.Stage(Stage()) + kR * T::kRankBytes + h * 128;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int k = 0; k < kSteps / 2; ++k) {
        const int chunk = (part * kSteps + 2 * k) * 2;
        ptx::LoadMatrices(head_factor_[r][k], row + r * T::kHeadBytes + head_chunk_ + (chunk << 4));
      }
    }
  }
  // B_V of half of the tokens, the warp's 16 numbers of d.
  __device__ void LoadFactors(int half) {
    const uint32_t row = shared_.Stage(Stage()) + value_offset_;
#pragma unroll
    for (int step = 2 * half; step < 2 * half + 2; ++step) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        ptx::LoadMatricesTransposed(factor_[r][step], row + step * 16 * 128 + r * T::kRankBytes);
      }
    }
  }
  // Heads of the weighers by turns: the i-th of a page is the (i / kWeighers)-th of weigher i % kWeighers.
  __device__ static constexpr int HeadOf(int i) { return i % T::kWeighers * T::kOwnHeads + i / T::kWeighers; }
  // Of all tiles of weights.
  __device__ static constexpr int TileOf(int i, int slot) {
    return i % T::kWeighers * T::kWeightTiles + slot * T::kOwnHeads + i / T::kWeighers;
  }
  __device__ void GiveBack(int i, int slot) { Arrive(shared_.WeightsEmpty(0, TileOf(i, slot))); }

  // What the page's first head needs, to registers.
  __device__ void LoadPage(int n_tokens) {
    WaitFull();
    if (n_tokens < 64) ClearAbsent(n_tokens);
    LoadHeadFactors(0, 0);
    LoadFactors(0), LoadFactors(1);
  }
  // Values of tokens from n_tokens on become 0 in the stage, or 0 * NaN would spread.
  __device__ void ClearAbsent(int n_tokens) {
    const int thread = warp_ * 32 + lane_;
    const uint32_t stage = shared_.Stage(Stage());
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll 1
      for (int item = n_tokens * 8 + thread; item < 64 * 8; item += 128) {
        ptx::StoreShared16Bytes(stage + r * T::kRankBytes + item * 16, {0, 0, 0, 0});
      }
#pragma unroll 1
      for (int item = thread; item < kH * 64; item += 128) {
        if (item % 64 < n_tokens) continue;
        ptx::StoreShared16(stage + kR * T::kRankBytes + r * T::kHeadBytes + item * 2, 0);
      }
    }
    wgmma::FenceShared();  // the next copy to this stage comes after
    ptx::NamedBarrier(kRowsCollectorBarrier, 128);
  }

  // The page's factors are there, or on their way to registers.
  __device__ void CollectPage() {
    const int slot = from_.stage;
#pragma unroll
    for (int i = 0; i < kH; ++i) {
      const int h = HeadOf(i);
      const uint32_t full = shared_.WeightsFull(0, TileOf(i, slot));
      const uint32_t weights = wgmma::TileLow(shared_.Weights(0, TileOf(i, slot)));
      const bool is_full = ptx::BarrierTryWait(full, from_.parity);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        uint32_t(&value)[kSteps][4] = value_[(i * kParts + part) % 2];
        wgmma::Wait<1>();  // the products with what stands there
#pragma unroll
        for (int k = 0; k < kSteps; ++k) wgmma::Settle(value[k]);
        if (part + 1 == kParts) GiveBackBehind(i, slot);
        Expand(part, value);
        if (part + 1 < kParts) {
          LoadHeadFactors(h, part + 1);
        } else if (i + 1 < kH) {
          LoadHeadFactors(HeadOf(i + 1), 0);
        }
        if (part == 0 && !is_full) ptx::BarrierWait(full, from_.parity);
        wgmma::Fence();
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          wgmma::MmaRegisters<0>(out_[h], value[k],
                                 wgmma::TileOf(weights + (part * kSteps + k) * kColumnStep), 1);
        }
        wgmma::Commit();
      }
    }
    is_first_ = false;
    AdvancePage();
  }

  // What no product reads any more when all but one group of them are done, in front of the page's i-th head.
  __device__ void GiveBackBehind(int i, int slot) {
    if (i > 0) {
      GiveBack(i - 1, slot);
    } else if (!is_first_) {
      GiveBack(kH - 1, old_slot_);
    }
    // Only now: an arrival may be moved in front of loads, but not of a wait.
    if (i == 0 && !is_first_) ptx::ArriveInCluster<T::kCluster>(shared_.Empty(old_stage_), lane_);
  }

  __device__ void Expand(int part, uint32_t (&value)[kSteps][4]) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int step = part * kSteps + k;
        uint32_t x = ptx::MultiplyBf16(head_factor_[0][k / 2][k % 2 * 2 + i / 2], factor_[0][step][i]);
#pragma unroll
        for (int r = 1; r < kR; ++r) {
          x = ptx::MultiplyAddBf16(head_factor_[r][k / 2][k % 2 * 2 + i / 2], factor_[r][step][i], x);
        }
        value[k][i] = x;
      }
    }
  }

  // The task's result: the output itself, or a partial one.
  __device__ void Finish(const RowsTask& task) {
    const bool is_partial = task.partial_row >= 0;
    const int64_t first_row = is_partial ? task.partial_row : task.row;
    const int64_t at = (first_row * p_.n_heads + task.head) * 64;
    ptx::WaitForPriorKernels();                                // which may still read what is written here
    if (is_partial) StorePartial(task, p_.partials.out + at);  // in front of the wait: nothing is divided
    ptx::BarrierWait(shared_.SumsFull(), n_tasks_ & 1);
    // Addresses of its own: those of the loop over pages would else be kept by every lane, and moved to
    // uniform registers for each product.
    ExpandedShared<T> shared = shared_;
    shared.numbers += __shfl_sync(~0u, lane_ >> 5, 0);
    for (int item = warp_ * 32 + lane_; item < kH * kN; item += 128) {
      const int h = item / kN, row = item % kN, head = task.head + h;
      if (row >= task.n_rows || head >= p_.n_heads) continue;
      float total = 0.0f;
      for (int warp = 0; warp < 4; ++warp) total += shared.Sum(warp, h, row);
      if (!(total < kMostTotal)) shared.DoAgain();
      if (is_partial) {
        p_.partials.max_sum[(first_row + row) * p_.n_heads + head] =
            make_float2(total > 0.0f ? shared.Base(n_tasks_ & 1, h, row) : kNoMax, total);
      } else {
        shared.Sum(0, h, row) = 1.0f / (total * kR);
      }
    }
    if (!is_partial) {
      ptx::NamedBarrier(kRowsCollectorBarrier, 128);
      if (p_.out_is_bf16) {
        Store(task, shared, static_cast<__nv_bfloat16*>(p_.out) + at);
      } else {
        Store(task, shared, static_cast<float*>(p_.out) + at);
      }
    }
    __syncwarp();
    Arrive(shared_.SumsEmpty());
  }
  // A lane has numbers l / 4 and l / 4 + 8 of the warp's 16, of rows 2 (l % 4) and the next of every 8.
  __device__ void StorePartial(const RowsTask& task, float* to) const {
    const int64_t stride = static_cast<int64_t>(p_.n_heads) * 64;
    to += (lane_ & 3) * 2 * stride + PlaceInPartial(warp_ * 16 + (lane_ >> 2));
#pragma unroll
    for (int i = 0; i < kN / 8; ++i, to += 8 * stride) {
#pragma unroll
      for (int h = 0; h < kH; ++h) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * i + (lane_ & 3) * 2 + e >= task.n_rows || task.head + h >= p_.n_heads) continue;
          *reinterpret_cast<float2*>(to + e * stride + h * 64) =
              make_float2(out_[h][4 * i + e], out_[h][4 * i + 2 + e]);
        }
      }
    }
  }
  template <typename Number>
  __device__ void Store(const RowsTask& task, const ExpandedShared<T>& shared, Number* to) const {
    const int64_t stride = static_cast<int64_t>(p_.n_heads) * 64;
    to += (lane_ & 3) * 2 * stride + warp_ * 16 + (lane_ >> 2);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i, to += 8 * stride) {
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        const float2 scale = shared.Sums(0, h)[4 * i + (lane_ & 3)];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * i + (lane_ & 3) * 2 + e >= task.n_rows || task.head + h >= p_.n_heads) continue;
          Number* const number = to + e * stride + h * 64;
          number[0] = static_cast<Number>(out_[h][4 * i + e] * (e == 0 ? scale.x : scale.y));
          number[8] = static_cast<Number>(out_[h][4 * i + 2 + e] * (e == 0 ? scale.x : scale.y));
        }
      }
    }
  }

  static constexpr float kMostTotal = 0x1p80f;  // of a row's weights in a task

  const RowsParams& p_;
  const ExpandedShared<T> shared_;  // a copy: addresses stay in registers
  const int warp_, lane_;
  uint32_t value_offset_;
  int head_chunk_;
  // Pages of stages and of tiles of weights.
  RingPosition at_, from_;
  int old_stage_ = 0, old_slot_ = 0, n_tasks_ = 0;  // of the page before
  bool is_first_ = true;
  uint32_t factor_[kR][4][4];
  uint32_t head_factor_[kR][kSteps / 2][4];
  uint32_t value_[2][kSteps][4];
  float out_[kH][kN / 2];
};

}  // namespace t6::cuda
