// A consumer warpgroup of the rows kernel on expanded keys and values: up to 64 query rows of two heads, by
// turns. While the scores of one become weights, the weights of the other are multiplied with its values, and
// the other's next scores are formed.
#pragma once

#include "engine/backend/cuda/prefill_wgmma.cuh"
#include "engine/backend/cuda/rows_params.cuh"
#include "engine/backend/cuda/rows_warp.cuh"

namespace t6::cuda {

template <class T>
class ExpandedConsumer {
 public:
  __device__ ExpandedConsumer(const RowsParams& p, const RowsShared<T>& shared, int group, int thread)
      : p_(p),
        shared_(shared),
        first_head_(group * kHeads),
        lane_(thread % 32),
        warp_(p, thread / 32 * 16, thread % 32) {
    values_.Advance(T::kStages);
  }

  __device__ void Run() {
    const int end = p_.block_begin[blockIdx.x + 1];
    for (int index = p_.block_begin[blockIdx.x]; index < end; ++index) {
      const RowsTask task = p_.tasks[index];
      Begin(task);
      for (int page = 0; page + 1 < task.n_pages; ++page) AttendPage<false>(task, page);
      AttendPage<true>(task, task.n_pages - 1);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        warp_.Finish(task, task.head + first_head_ + h, rows_[h], out_[h], T::kRank);
      }
    }
  }

 private:
  static constexpr int kHeads = 2;
  static_assert(kHeads == T::kGroupHeads);

  __device__ void WaitFull(RingPosition at) { ptx::BarrierWait(shared_.Full(at.stage), at.parity); }
  __device__ void Arrive(uint32_t barrier) {
    if (lane_ == 0) ptx::BarrierArrive(barrier);
  }
  __device__ uint32_t Tile(RingPosition at, int head) const {
    return shared_.Stage(at.stage) + (first_head_ + head) * T::kTileBytes;
  }

  __device__ void Begin(const RowsTask& task) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      warp_.LoadQuery(task, task.head + first_head_ + h, query_[h]);
#pragma unroll
      for (int i = 0; i < 32; ++i) out_[h][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < 4; ++step)
      weight_[step][0] = weight_[step][1] = weight_[step][2] = weight_[step][3] = 0;
    WaitFull(keys_);
    wgmma::Fence();
    MultiplyKeys<0>(keys_);
    wgmma::Commit();
    wgmma::Wait<0>();
    wgmma::Settle(score_[0]);
  }

  template <int kHead>
  __device__ void MultiplyKeys(RingPosition keys) {
    const uint64_t tile = wgmma::Tile(Tile(keys, kHead));
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma::MmaRegisters<0>(score_[kHead], query_[kHead][step], tile + step * wgmma::kColumnStep, step > 0);
    }
  }
  template <int kHead>
  __device__ void MultiplyValues(RingPosition values) {
    const uint64_t tile = wgmma::Tile(Tile(values, kHead));
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma::MmaRegisters<1>(out_[kHead], weight_[step], tile + step * wgmma::kRowStep, 1);
    }
  }

  // At the start and at the end nothing is on its way, scores of the page's first head are there, and the
  // weights of the second one of the page in front are not multiplied yet (0 at the start of a task, so that
  // any tile will do). kIsLast: no page follows in the task.
  template <bool kIsLast>
  __device__ void AttendPage(const RowsTask& task, int page) {
    const int token = task.first_token + page * 64;
    RingPosition next = keys_;
    next.Advance(T::kStages), next.Advance(T::kStages);

    wgmma::Fence();
    MultiplyValues<1>(page > 0 ? before_ : keys_);
    wgmma::Commit();
    MultiplyKeys<1>(keys_);
    wgmma::Commit();
    Weigh<0>(task, token, page == 0);
    WaitFull(values_);
    wgmma::Wait<1>();
    wgmma::Settle(out_[1]), SettleWeights();
    if (page > 0) Arrive(shared_.Empty(before_.stage));
    PackWeights(score_[0], weight_);
    wgmma::Fence();
    MultiplyValues<0>(values_);
    wgmma::Commit();
    wgmma::Wait<1>();
    wgmma::Settle(score_[1]);

    if constexpr (!kIsLast) {
      WaitFull(next);
      wgmma::Fence();
      MultiplyKeys<0>(next);
      wgmma::Commit();
    }
    Weigh<1>(task, token, page == 0);
    Arrive(shared_.Empty(keys_.stage));
    wgmma::Wait<0>();
    wgmma::Settle(out_[0]), wgmma::Settle(score_[0]), SettleWeights();
    PackWeights(score_[1], weight_);
    if constexpr (kIsLast) {
      wgmma::Fence();
      MultiplyValues<1>(values_);
      wgmma::Commit();
      wgmma::Wait<0>();
      wgmma::Settle(out_[1]), SettleWeights();
      Arrive(shared_.Empty(values_.stage));
    }
    before_ = values_;
    keys_ = next;
    values_.Advance(T::kStages), values_.Advance(T::kStages);
  }
  __device__ void SettleWeights() {
#pragma unroll
    for (int step = 0; step < 4; ++step) wgmma::Settle(weight_[step]);
  }

  // Scores become weights. The vote also keeps the exponentials in front of the wait for the products that
  // they run beside.
  template <int kHead>
  __device__ void Weigh(const RowsTask& task, int token, bool is_first) {
    float(&score)[32] = score_[kHead];
    SoftmaxRows& rows = rows_[kHead];
    float factor[2], more[2];
    const bool masks = token + 63 > task.first_position;
    if (masks) warp_.Mask(task, token, score);
    if (is_first) rows.MoveBase(score, true, factor);
    rows.Weigh(score, more);
    const bool exists = task.head + first_head_ + kHead < p_.n_heads;
    if (__any_sync(~0u, exists && SoftmaxRows::IsTooMuch(more))) {
      MultiplyAgain(score, query_[kHead], Tile(keys_, kHead), lane_);
      if (masks) warp_.Mask(task, token, score);
      rows.MoveBase(score, false, factor);
      Rescale(out_[kHead], factor);
      rows.Weigh(score, more);
    }
    rows.sum[0] += more[0], rows.sum[1] += more[1];
  }

  const RowsParams& p_;
  const RowsShared<T>& shared_;
  const int first_head_, lane_;
  const RowsWarp warp_;
  RingPosition keys_, values_, before_;  // of the page, and values of the one in front
  uint32_t query_[kHeads][4][4];
  float score_[kHeads][32];
  uint32_t weight_[4][4];
  float out_[kHeads][32];
  SoftmaxRows rows_[kHeads];
};

}  // namespace t6::cuda
