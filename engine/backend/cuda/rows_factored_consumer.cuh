// A consumer warpgroup of the rows kernel that never expands: the 64 rows of its products are 16 query rows
// of four heads, or 32 of two, since B is the same for every head. S_r = Q B_r^T and O += (weights a_r) B_r,
// B straight from where the copy put it: R times the products of expanded keys and values, but for few rows.
#pragma once

#include "engine/backend/cuda/prefill_wgmma.cuh"
#include "engine/backend/cuda/rows_params.cuh"
#include "engine/backend/cuda/rows_warp.cuh"

namespace t6::cuda {

template <class T>
class FactoredConsumer {
 public:
  __device__ FactoredConsumer(const RowsParams& p, const RowsShared<T>& shared, int group, int thread)
      : p_(p),
        shared_(shared),
        group_(group),
        head_(group * T::kGroupHeads + thread / 32 / T::kHeadWarps),
        lane_(thread % 32),
        warp_(p, thread / 32 % T::kHeadWarps * 16, thread % 32) {}

  __device__ void Run() {
    const int end = p_.block_begin[blockIdx.x / T::kCluster + 1];
    if (group_ == T::kGroups - 1) PassTurn();
    for (int index = p_.block_begin[blockIdx.x / T::kCluster]; index < end; ++index) {
      const RowsTask task = TaskOfBlock<T>(p_, index);
      warp_.LoadQuery(task, task.head + head_, query_);
#pragma unroll
      for (int i = 0; i < 32; ++i) out_[i] = 0.0f;
      keys_ = NextStage();
      TakeTurn();
      MultiplyKeys();
      Weigh(task, task.first_token, true);
      int rest = task.n_tokens - task.first_token;  // of tokens, from the page on
      for (int page = 1; page < task.n_pages; ++page, rest -= 64) {
        MultiplyValues<true>(rest);
        MultiplyKeys();
        Weigh(task, task.first_token + page * 64, false);
      }
      MultiplyValues<false>(rest);
      warp_.Finish(task, task.head + head_, rows_, out_, kR);
    }
  }

 private:
  static constexpr int kR = T::kRank;
  static constexpr int kClearBarrier = 1, kTurnBarrier = kClearBarrier + T::kGroups;

  __device__ void Arrive(uint32_t barrier) {
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(barrier);
  }
  // The warpgroups multiply in turns. Without, they would all multiply and then all weigh, since they wait
  // for the same pages.
  __device__ void TakeTurn() { ptx::NamedBarrier(kTurnBarrier + group_, 256); }
  __device__ void PassTurn() { ptx::NamedBarrierArrive(kTurnBarrier + (group_ + 1) % T::kGroups, 256); }
  // The next half of a page.
  __device__ int NextStage() {
    const int stage = at_.stage;
    ptx::BarrierWait(shared_.Full(stage), at_.parity);
    at_.Advance(T::kStages);
    return stage;
  }

  // score_[r] = Q B_r^T, the end of a turn.
  __device__ void MultiplyKeys() {
    wgmma::Fence();
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const uint64_t tile = wgmma::Tile(shared_.Stage(keys_) + r * T::kRankBytes);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        wgmma::MmaRegisters<0>(score_[r], query_[step], tile + step * wgmma::kColumnStep, step > 0);
      }
    }
    wgmma::Commit();
    PassTurn();
    wgmma::Wait<0>();
#pragma unroll
    for (int r = 0; r < kR; ++r) wgmma::Settle(score_[r]);
  }
  // out_ += (weights a_r) B_r, the start of a turn; there are no registers for the next keys beside it.
  // n_tokens: of the page that exist. kContinues: with the next page's keys, which are waited for here.
  template <bool kContinues>
  __device__ void MultiplyValues(int n_tokens) {
    const int stage = NextStage();
    uint32_t weight[kR][4][4];
    FormWeights(shared_.Stage(stage), n_tokens, weight);
    if (kContinues) keys_ = NextStage();
    TakeTurn();
    wgmma::Fence();
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const uint64_t tile = wgmma::Tile(shared_.Stage(stage) + r * T::kRankBytes);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        wgmma::MmaRegisters<1>(out_, weight[r][step], tile + step * wgmma::kRowStep, 1);
      }
    }
    wgmma::Commit();
    if (!kContinues) PassTurn();
    wgmma::Wait<0>();
    wgmma::Settle(out_);
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int step = 0; step < 4; ++step) wgmma::Settle(weight[r][step]);
    }
    Arrive(shared_.Empty(stage));
  }

  // A of one rank for the lane's columns 8 i + 2 (l % 4) and the next, as a pair.
  __device__ uint32_t FactorRow(uint32_t stage, int rank) const {
    return stage + kR * T::kRankBytes + rank * T::kHeadBytes + head_ * 128 + (lane_ & 3) * 4;
  }
  __device__ static uint32_t TokenFactors(uint32_t row, int i) { return ptx::LoadShared32(row + (i << 4)); }

  // score_[0] = sum over r of a_r score_[r].
  __device__ void Combine(uint32_t stage) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const uint32_t a = TokenFactors(FactorRow(stage, r), i);
        const float scalar[2] = {ptx::LowBf16(a), ptx::HighBf16(a)};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float x = score_[r][4 * i + e];
          score_[0][4 * i + e] = r == 0 ? scalar[e % 2] * x : fmaf(scalar[e % 2], x, score_[0][4 * i + e]);
        }
      }
    }
  }

  __device__ void Weigh(const RowsTask& task, int token, bool is_first) {
    const uint32_t stage = shared_.Stage(keys_);
    const bool masks = token + 63 > task.first_position;
    float factor[2], more[2];
    Combine(stage);
    if (masks) warp_.Mask(task, token, score_[0]);
    if (is_first) rows_.MoveBase(score_[0], true, factor);
    rows_.Weigh(score_[0], more);
    if (__any_sync(~0u, task.head + head_ < p_.n_heads && SoftmaxRows::IsTooMuch(more))) {
#pragma unroll
      for (int r = 0; r < kR; ++r) MultiplyAgain(score_[r], query_, stage + r * T::kRankBytes, lane_);
      Combine(stage);
      if (masks) warp_.Mask(task, token, score_[0]);
      rows_.MoveBase(score_[0], false, factor);
      Rescale(out_, factor);
      rows_.Weigh(score_[0], more);
    }
    rows_.sum[0] += more[0], rows_.sum[1] += more[1];
    Arrive(shared_.Empty(keys_));
  }

  // weight[r] = weights a_V,r. Those of tokens that do not exist, from n_tokens on, are 0 whatever their
  // factors, and so is B where it lies: 0 * NaN would spread.
  __device__ void FormWeights(uint32_t stage, int n_tokens, uint32_t (&weight)[kR][4][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t pairs[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        pairs[k] = ptx::PackBf16(score_[0][4 * i + 2 * k], score_[0][4 * i + 2 * k + 1]);
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const uint32_t a = TokenFactors(FactorRow(stage, r), i);
#pragma unroll
        for (int k = 0; k < 2; ++k) weight[r][i / 2][i % 2 * 2 + k] = ptx::MultiplyBf16(pairs[k], a);
      }
    }
    if (n_tokens >= 64) return;
    ClearTokens(stage, n_tokens);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int token = 8 * i + (lane_ & 3) * 2;
      const uint32_t keep = (token < n_tokens ? 0xffffu : 0u) | (token + 1 < n_tokens ? 0xffff0000u : 0u);
#pragma unroll
      for (int r = 0; r < kR; ++r)
        weight[r][i / 2][i % 2 * 2] &= keep, weight[r][i / 2][i % 2 * 2 + 1] &= keep;
    }
  }
  // Every warpgroup for itself: they write the same. All of its warps before the first product.
  __device__ void ClearTokens(uint32_t stage, int first) {
    for (int item = threadIdx.x % 128; item < kR * (64 - first) * 8; item += 128) {
      const int row = item / 8;
      ptx::StoreShared16Bytes(
          stage + row / (64 - first) * T::kRankBytes + (first + row % (64 - first)) * 128 + item % 8 * 16,
          {0, 0, 0, 0});
    }
    wgmma::FenceShared();
    ptx::NamedBarrier(kClearBarrier + group_, 128);
  }

  const RowsParams& p_;
  const RowsShared<T>& shared_;
  const int group_, head_, lane_;  // head: of the task's
  const RowsWarp warp_;
  RingPosition at_;
  int keys_ = 0;  // the stage of the page's keys
  uint32_t query_[4][4];
  float score_[kR][32];
  float out_[32];
  SoftmaxRows rows_;
};

}  // namespace t6::cuda
