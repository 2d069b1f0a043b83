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
    at_.Advance(T::kStages);
  }

  __device__ void Run(bool again) {
    const int end = p_.block_begin[blockIdx.x + 1];
    for (int index = p_.block_begin[blockIdx.x]; index < end; ++index, ++n_tasks_) {
      const RowsTask task = p_.tasks[index];
      if (again) PassOver(task);
#pragma unroll
      for (int h = 0; h < kH; ++h) {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) out_[h][i] = 0.0f;
      }
      int rest = task.n_tokens - task.first_token;  // of tokens, from the page on
      is_first_ = true;
      for (int page = 0; page < task.n_pages; ++page, rest -= 64) {
        rest < 64 ? CollectPage<true>(rest) : CollectPage<false>(64);
      }
      wgmma::Wait<0>();
#pragma unroll
      for (int h = 0; h < kH; ++h) wgmma::Settle(out_[h]);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) wgmma::Settle(value_[0][k]), wgmma::Settle(value_[1][k]);
      if (kParts == 1) GiveBack();
      Arrive(read_[0]);
      read_[0] = read_[1] = 0;
      Arrive(shared_.Empty(stage_));
      Finish(task);
    }
  }

 private:
  static constexpr int kN = T::kRows, kH = T::kBlockHeads, kR = T::kRank;
  static constexpr uint32_t kColumnStep = wgmma::kColumnStep;
  static constexpr int kParts = T::kValueParts, kSteps = 4 / kParts;  // of a tile: groups of products

  __device__ void Arrive(uint32_t barrier) {
    if (lane_ == 0) ptx::BarrierArrive(barrier);
  }
  __device__ void AdvanceStage() { at_.Advance(T::kStages), at_.Advance(T::kStages); }
  // The weigher looks for bases alone.
  __device__ void PassOver(const RowsTask& task) {
    for (int page = 0; page < task.n_pages; ++page) {
      ptx::BarrierWait(shared_.Full(at_.stage), at_.parity);
      Arrive(shared_.Empty(at_.stage));
      AdvanceStage();
    }
  }
  // A of one head, of a part of the tokens: matrices whose rows are all the same.
  __device__ void LoadHeadFactors(int h, int part) {
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int k = 0; k < kSteps / 2; ++k) {
        const int chunk = (part * kSteps + 2 * k) * 2 + (lane_ >> 3);
        ptx::LoadMatrices(head_factor_[r][k], shared_.Stage(stage_) + kR * T::kRankBytes + r * T::kHeadBytes +
                                                  h * 128 + ((chunk ^ (h & 7)) << 4));
      }
    }
  }
  // Heads of the weighers by turns.
  __device__ static constexpr int HeadOf(int i) { return i % T::kWeighers * T::kOwnHeads + i / T::kWeighers; }

  // kMasks: values of tokens from n_tokens on are taken as 0, or 0 * NaN would spread.
  template <bool kMasks>
  __device__ void CollectPage(int n_tokens) {
    ptx::BarrierWait(shared_.Full(at_.stage), at_.parity);
    if (!is_first_) Arrive(shared_.Empty(stage_));  // only now: an arrival may be moved in front of loads
    stage_ = at_.stage;
    LoadHeadFactors(0, 0);
    uint32_t factor[kR][4][4];  // B_V, the warp's 16 numbers of d
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        ptx::LoadMatricesTransposed(
            factor[r][step], shared_.Stage(stage_) + value_offset_ + step * 16 * 128 + r * T::kRankBytes);
      }
    }
#pragma unroll
    for (int i = 0; i < kH; ++i) {
      const int h = HeadOf(i), weigher = i % T::kWeighers;
      RingPosition& from = from_[weigher];
      const uint32_t full = shared_.WeightsFull(weigher, from.stage);
      const uint32_t weights = wgmma::TileLow(shared_.Weights(weigher, from.stage));
      const bool is_full = ptx::BarrierTryWait(full, from.parity);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        uint32_t(&value)[kSteps][4] = value_[(i * kParts + part) % 2];
        wgmma::Wait<1>();  // the products with what stands there
#pragma unroll
        for (int k = 0; k < kSteps; ++k) wgmma::Settle(value[k]);
        if (part + 1 == kParts) GiveBack();
        Expand<kMasks>(part, n_tokens, factor, value);
        if (part + 1 < kParts) {
          LoadHeadFactors(h, part + 1);
        } else if (i + 1 < kH) {
          LoadHeadFactors(HeadOf(i + 1), 0);
        }
        if (part == 0 && !is_full) ptx::BarrierWait(full, from.parity);
        wgmma::Fence();
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          wgmma::MmaRegisters<0>(out_[h], value[k],
                                 wgmma::TileOf(weights + (part * kSteps + k) * kColumnStep), 1);
        }
        wgmma::Commit();
      }
      read_[1] = read_[0], read_[0] = shared_.WeightsEmpty(weigher, from.stage);
      from.Advance(T::kWeightTiles);
    }
    is_first_ = false;
    AdvanceStage();
  }

  // The tile behind whose products another group of them has been waited for.
  __device__ void GiveBack() {
    const uint32_t tile = read_[kParts == 1];
    if (lane_ == 0 && tile != 0) ptx::BarrierArrive(tile);
  }

  template <bool kMasks>
  __device__ void Expand(int part, int n_tokens, const uint32_t (&factor)[kR][4][4],
                         uint32_t (&value)[kSteps][4]) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int step = part * kSteps + k;
        uint32_t x = ptx::MultiplyBf16(head_factor_[0][k / 2][k % 2 * 2 + i / 2], factor[0][step][i]);
#pragma unroll
        for (int r = 1; r < kR; ++r) {
          x = ptx::MultiplyAddBf16(head_factor_[r][k / 2][k % 2 * 2 + i / 2], factor[r][step][i], x);
        }
        if constexpr (kMasks) {
          const int token = step * 16 + i / 2 * 8 + (lane_ & 3) * 2;
          x &= (token < n_tokens ? 0xffffu : 0u) | (token + 1 < n_tokens ? 0xffff0000u : 0u);
        }
        value[k][i] = x;
      }
    }
  }

  // The task's result: the output itself, or a partial one.
  __device__ void Finish(const RowsTask& task) {
    const bool is_partial = task.partial_row >= 0;
    const int64_t first_row = is_partial ? task.partial_row : task.row;
    ptx::BarrierWait(shared_.SumsFull(), n_tasks_ & 1);
    for (int item = threadIdx.x % 128; item < kH * kN; item += 128) {
      const int h = item / kN, row = item % kN, head = task.head + h;
      if (row >= task.n_rows || head >= p_.n_heads) continue;
      float total = 0.0f;
      for (int warp = 0; warp < 4; ++warp) total += shared_.Sum(warp, h, row);
      if (!(total < kMostTotal)) *shared_.again = 1;
      shared_.Sum(0, h, row) = is_partial ? 1.0f : 1.0f / (total * kR);
      if (is_partial) {
        p_.partials.max_sum[(first_row + row) * p_.n_heads + head] =
            make_float2(total > 0.0f ? shared_.Base(n_tasks_ & 1, h, row) : kNoMax, total);
      }
    }
    ptx::NamedBarrier(kRowsCollectorBarrier, 128);
    const int64_t at = (first_row * p_.n_heads + task.head) * 64;
    if (is_partial || !p_.out_is_bf16) {
      Store(task, (is_partial ? p_.partials.out : static_cast<float*>(p_.out)) + at);
    } else {
      Store(task, static_cast<__nv_bfloat16*>(p_.out) + at);
    }
    __syncwarp();
    Arrive(shared_.SumsEmpty());
  }
  // A lane has numbers l / 4 and l / 4 + 8 of the warp's 16 of rows 2 (l % 4) and the next of every 8.
  template <typename Number>
  __device__ void Store(const RowsTask& task, Number* to) const {
    const int64_t stride = static_cast<int64_t>(p_.n_heads) * 64;
    to += (lane_ & 3) * 2 * stride + warp_ * 16 + (lane_ >> 2);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i, to += 8 * stride) {
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        const float2 scale = shared_.Sums(0, h)[4 * i + (lane_ & 3)];
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
  RingPosition at_, from_[T::kWeighers];  // stages, tiles of weights
  uint32_t read_[2] = {0, 0};             // where the last tiles, newest first, are given back; 0: none
  int stage_ = 0, n_tasks_ = 0;
  bool is_first_ = true;
  uint32_t head_factor_[kR][kSteps / 2][4];
  uint32_t value_[2][kSteps][4];
  float out_[kH][kN / 2];
};

}  // namespace t6::cuda
