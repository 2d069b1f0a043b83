// One of two warpgroups of the rows kernel on expanded keys and values that form scores and their weights,
// each of heads of its own. Everything is transposed: 64 tokens are the rows of a product and up to 64 query
// rows its columns, so that keys are expanded from factors in registers, as the product's left operand, and
// nobody else needs them. Weights go to the collector by shared memory.
#pragma once

#include "engine/backend/cuda/prefill_softmax.cuh"
#include "engine/backend/cuda/prefill_wgmma.cuh"
#include "engine/backend/cuda/rows_params.cuh"

namespace t6::cuda {

// Weights are 2^(score - base), as in prefill_softmax.cuh. Nothing can be weighed again here: where a row's
// weights add up to too much, the collector finds out at the end and the block does all of its tasks again,
// with bases that FindBases has looked for.
template <class T>
class RowsWeigher {
 public:
  __device__ RowsWeigher(const RowsParams& p, const ExpandedShared<T>& shared, int group, int thread)
      : p_(p),
        shared_(shared),
        group_(group),
        first_head_(group * kH),
        thread_(thread),
        warp_(thread / 32),
        lane_(KeptLane(thread % 32)) {
    const int row = lane_ & 7, low = (lane_ >> 3) & 1, high = lane_ >> 4;
    key_offset_ = TokenRows<64>::Offset(warp_ * 16 + low * 8 + row, high);
    head_offset_ = min(high, kR - 1) * T::kHeadBytes + ((warp_ * 2 + low) << 4);
    weights_offset_ = (high * 8 + row) * 128 + (((warp_ * 2 + low) ^ row) << 4);
  }

  // `again`: the tasks have been done once and some weights were too much.
  __device__ void Run(bool again) {
    const int end = p_.block_begin[blockIdx.x / T::kCluster + 1];
    for (int index = p_.block_begin[blockIdx.x / T::kCluster]; index < end; ++index, ++n_tasks_) {
      const RowsTask task = TaskOfBlock<T>(p_, index);
      if (task.head + first_head_ >= p_.n_heads) {
        PassOver(task, again);
        continue;
      }
      ptx::WaitForPriorKernels();  // for the queries, not for the task
      LoadQueries(task);
      FindBases(task, again);
      Attend(task);
    }
  }

 private:
  static constexpr int kN = T::kRows, kH = T::kOwnHeads, kR = T::kRank;
  static constexpr uint32_t kColumnStep = wgmma::kColumnStep;
  // Of kN / 8 groups of rows, those whose exponentials stand in front of the next keys' expansion: how the
  // assembler mixes both decides 5 % of the time, so this is what was fastest.
  static constexpr int kEarly = kN > 56 ? 4 : 0;

  __device__ void Barrier() { ptx::NamedBarrier(kRowsWeigherBarrier + group_, 128); }

  // Into shared memory, 0 where there is no row or head.
  __device__ void LoadQueries(const RowsTask& task) {
    Barrier();  // all warps' products with the queries before are done
#pragma unroll 7
    for (int item = thread_; item < kH * kN * 8; item += 128) {
      const int chunk = item % 8, row = item / 8 % kN, h = item / (8 * kN);
      const int head = task.head + first_head_ + h;
      uint4 x = make_uint4(0, 0, 0, 0);
      if (row < task.n_rows && head < p_.n_heads) {
        x = static_cast<const uint4*>(
            p_.queries)[(static_cast<int64_t>(head) * p_.query_rows + task.row + row) * 8 + chunk];
      }
      ptx::StoreShared16Bytes(shared_.Query(first_head_ + h) + row * 128 + ((chunk ^ (row & 7)) << 4),
                              {x.x, x.y, x.z, x.w});
    }
    wgmma::FenceShared();
    Barrier();
  }

  // None of the heads exists: stages and tiles go on, with weights that nobody uses.
  __device__ void PassOver(const RowsTask& task, bool again) {
    for (int pass = again ? 0 : 1; pass < 2; ++pass) {
#pragma unroll 1
      for (int page = 0; page < task.n_pages; ++page) {
        WaitFull();
        __syncwarp();  // or a lane could miss the stage's whole turn
        ptx::ArriveInCluster<T::kCluster>(shared_.Empty(Stage()), lane_);
        at_.Advance(T::kStages / 2);
        if (pass == 0) continue;
#pragma unroll 1
        for (int h = 0; h < kH; ++h) {
          ptx::BarrierWait(shared_.WeightsEmpty(group_, to_.stage * kH + h), to_.parity ^ 1);
          __syncwarp();
          Arrive(shared_.WeightsStored(group_, to_.stage * kH + h));
        }
        to_.Advance(T::kWeightSlots);
      }
    }
    ptx::BarrierWait(shared_.SumsEmpty(), (n_tasks_ & 1) ^ 1);
    __syncwarp();
    Arrive(shared_.SumsFull());
  }

  // B_K of the page, the warp's 16 tokens.
  __device__ void LoadFactors() {
    stage_ = shared_.Stage(Stage());
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        ptx::LoadMatrices(factor_[r][step], stage_ + r * T::kRankBytes + (key_offset_ ^ (step << 5)));
      }
    }
  }
  // key = sum over r of a_r B_r of one head, times R_K as everywhere.
  __device__ void Expand(int head) {
    uint32_t a[(kR + 1) / 2][4];  // [r / 2][r % 2 * 2 + half] of tokens l / 4 and l / 4 + 8, twice each
#pragma unroll
    for (int pair = 0; pair < (kR + 1) / 2; ++pair) {
      // A matrix whose rows are all the same, transposed: its columns are. An odd rank's last pair has it
      // twice.
      const int offset = 2 * pair + 1 < kR || pair == 0 ? head_offset_ : head_offset_ & 0x70;
      ptx::LoadMatricesTransposed(
          a[pair], stage_ + kR * T::kRankBytes + 2 * pair * T::kHeadBytes + head * 128 + offset);
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        key_[step][i] = ptx::MultiplyBf16(a[0][i % 2], factor_[0][step][i]);
#pragma unroll
        for (int r = 1; r < kR; ++r) {
          key_[step][i] =
              ptx::MultiplyAddBf16(a[r / 2][r % 2 * 2 + i % 2], factor_[r][step][i], key_[step][i]);
        }
      }
    }
  }
  // score_ = K Q^T of one head.
  __device__ void Multiply(int head) {
    const uint32_t query = wgmma::TileLow(shared_.Query(head));
    wgmma::Fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma::MmaRegisters<0>(score_, key_[step], wgmma::TileOf(query + step * kColumnStep), step > 0);
    }
    wgmma::Commit();
  }
  __device__ void WaitForScores() {
    wgmma::Wait<0>();
    wgmma::Settle(score_);
#pragma unroll
    for (int step = 0; step < 4; ++step) wgmma::Settle(key_[step]);
  }
  // Stages of keys and values take turns: a page is two.
  __device__ int Stage() const { return 2 * at_.stage; }
  __device__ void WaitFull() { ptx::BarrierWait(shared_.Full(Stage()), at_.parity); }
  __device__ void Arrive(uint32_t barrier) {
    if (lane_ == 0) ptx::BarrierArrive(barrier);
  }

  __device__ void Attend(const RowsTask& task) {
#pragma unroll
    for (int h = 0; h < kH; ++h) {
#pragma unroll
      for (int i = 0; i < kN / 4; ++i) sum_[h][i] = 0.0f;
    }
    WaitFull();
    LoadFactors();
    Expand(first_head_);
    // Pages that all rows see, but for the last, where no base has to be subtracted.
    const int n_plain =
        shifts_ ? 0 : min(task.n_pages - 1, (task.first_position + 1 - task.first_token) / 64);
    int page = 0;
#pragma unroll 1
    for (; page < n_plain; ++page) AttendPage<true>(task, page);
#pragma unroll 1
    for (; page < task.n_pages; ++page) AttendPage<false>(task, page);
    GiveSums();
  }

  // At the start and at the end the first head's keys are expanded and nothing is on its way. kIsPlain:
  // nothing is masked, bases are 0, and it is not the last page.
  template <bool kIsPlain>
  __device__ void AttendPage(const RowsTask& task, int page) {
    const int slot = to_.stage;
    const uint32_t parity = to_.parity ^ 1;
#pragma unroll
    for (int h = 0; h < kH; ++h) {
      const bool ends_page = h + 1 == kH;
      const bool ends = !kIsPlain && ends_page && page + 1 == task.n_pages;
      const int stage = Stage();
      bool is_full = true;  // the next page's stage; asked for early, since the answer takes a while
      if (ends_page) {
        at_.Advance(T::kStages / 2);
        if (!ends) is_full = ptx::BarrierTryWait(shared_.Full(Stage()), at_.parity);
      }
      Multiply(first_head_ + h);
      const uint32_t weights = shared_.Weights(group_, slot * kH + h);
      const uint32_t empty = shared_.WeightsEmpty(group_, slot * kH + h);
      const bool is_empty = ptx::BarrierTryWait(empty, parity);
      if (ends_page) {
        if (!is_full) WaitFull();
        ptx::ArriveInCluster<T::kCluster>(shared_.Empty(stage), lane_);
      }
      WaitForScores();
      if (!is_empty) ptx::BarrierWait(empty, parity);
      if (!kIsPlain) {
        Mask(task, task.first_token + page * 64);
        if (shifts_) Shift(first_head_ + h);
      }
      if (!ends && ends_page) LoadFactors();
      StoreWeights<0, kEarly>(h, weights);
      if (!ends) Expand(first_head_ + (h + 1) % kH);
      StoreWeights<kEarly, kN / 8>(h, weights);
      __syncwarp();
      Arrive(shared_.WeightsStored(group_, slot * kH + h));
    }
    to_.Advance(T::kWeightSlots);
  }

  // Scores of rows 8 kFrom up to 8 kTo become weights, [kN][64 tokens] in shared memory.
  template <int kFrom, int kTo>
  __device__ void StoreWeights(int h, uint32_t weights) {
    float(&score)[kN / 2] = score_;
#pragma unroll
    for (int i = kFrom; i < kTo; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) score[4 * i + e] = ptx::Exp2(score[4 * i + e]);
      sum_[h][2 * i] += score[4 * i] + score[4 * i + 2];
      sum_[h][2 * i + 1] += score[4 * i + 1] + score[4 * i + 3];
      if (i % 2 == 1) {
        uint32_t packed[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          packed[k] = ptx::PackBf16(score[4 * i - 4 + 2 * k], score[4 * i - 3 + 2 * k]);
        }
        ptx::StoreMatricesTransposed(weights + weights_offset_ + (i - 1) * 1024, packed);
      } else if (i + 1 == kN / 8) {
        ptx::StoreTwoMatricesTransposed(weights + weights_offset_ + i * 1024,
                                        ptx::PackBf16(score[4 * i], score[4 * i + 1]),
                                        ptx::PackBf16(score[4 * i + 2], score[4 * i + 3]));
      }
    }
  }

  // What a row must not see becomes -inf, whatever stood there, NaN included.
  __device__ void Mask(const RowsTask& task, int first_token) {
    const int token = first_token + warp_ * 16 + (lane_ >> 2);
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) {
      const int row = i / 2 * 8 + (lane_ & 3) * 2 + i % 2;
      const int last = min(task.first_position + row * task.position_step, task.n_tokens - 1);
      if (token > last) score_[i / 2 * 4 + i % 2] = -INFINITY;
      if (token + 8 > last) score_[i / 2 * 4 + 2 + i % 2] = -INFINITY;
    }
  }

  // --- bases
  __device__ float2* Bases(int head) { return shared_.Bases(n_tasks_ & 1, head) + (lane_ & 3); }
  __device__ void Shift(int head) {
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      const float2 base = Bases(head)[4 * i];
      score_[4 * i] -= base.x, score_[4 * i + 1] -= base.y;
      score_[4 * i + 2] -= base.x, score_[4 * i + 3] -= base.y;
    }
  }
  // Of all rows from the task's first page, or from all of them in a pass over the keys alone.
  __device__ void FindBases(const RowsTask& task, bool from_all) {
    shifts_ = false;
    for (int page = 0; page < (from_all ? task.n_pages : 1); ++page) {
      WaitFull();
      LoadFactors();
#pragma unroll 1
      for (int head = first_head_; head < first_head_ + kH; ++head) {
        Expand(head);
        Multiply(head);
        WaitForScores();
        // Where all rows see all of the page, one look tells whether any base is needed.
        if (!from_all && task.first_position >= task.first_token + 63 &&
            !__any_sync(~0u, ptx::NamedBarrierAny(kRowsWeigherBarrier + group_, 128, !IsModerate()))) {
          ClearBases(head);
          continue;
        }
        Mask(task, task.first_token + page * 64);
        RaiseBases(head, page == 0);
      }
      if (!from_all) return;
      ptx::ArriveInCluster<T::kCluster>(shared_.Empty(Stage()), lane_);
      at_.Advance(T::kStages / 2);
    }
  }
  // No score could make a base; NaN could.
  __device__ bool IsModerate() const {
    bool is_moderate = true;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) is_moderate &= fabsf(score_[i]) <= SoftmaxRows::kModerate;
    return is_moderate;
  }
  // Every warp writes the same.
  __device__ void ClearBases(int head) {
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      if (lane_ < 4) Bases(head)[4 * i] = make_float2(0.0f, 0.0f);
    }
  }
  // By the greatest of the scores and what the base is already. Every warp writes the same.
  __device__ void RaiseBases(int head, bool is_first) {
    Barrier();  // everyone has read what was there
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      float2 most =
          make_float2(fmaxf(score_[4 * i], score_[4 * i + 2]), fmaxf(score_[4 * i + 1], score_[4 * i + 3]));
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        most.x = fmaxf(most.x, __shfl_xor_sync(~0u, most.x, lanes));
        most.y = fmaxf(most.y, __shfl_xor_sync(~0u, most.y, lanes));
      }
      if (lane_ < 4) shared_.Exchange(group_, warp_)[lane_ + 4 * i] = most;
    }
    Barrier();
    bool any = false;
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      float2 base = is_first ? make_float2(-INFINITY, -INFINITY) : Bases(head)[4 * i];
#pragma unroll
      for (int warp = 0; warp < 4; ++warp) {
        const float2 most = shared_.Exchange(group_, warp)[(lane_ & 3) + 4 * i];
        base.x = fmaxf(base.x, most.x), base.y = fmaxf(base.y, most.y);
      }
      base.x = SoftmaxRows::BaseOf(base.x), base.y = SoftmaxRows::BaseOf(base.y);
      any |= base.x != 0.0f || base.y != 0.0f;
      __syncwarp();
      if (lane_ < 4) Bases(head)[4 * i] = base;
    }
    shifts_ |= __any_sync(~0u, any);
    __syncwarp();
  }

  // Every warp's share of the sums of weights.
  __device__ void GiveSums() {
    ptx::BarrierWait(shared_.SumsEmpty(), (n_tasks_ & 1) ^ 1);
#pragma unroll
    for (int h = 0; h < kH; ++h) {
#pragma unroll
      for (int i = 0; i < kN / 4; ++i) {
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
          sum_[h][i] += __shfl_xor_sync(~0u, sum_[h][i], lanes);
        }
      }
      if (lane_ < 4) {
#pragma unroll
        for (int i = 0; i < kN / 8; ++i) {
          shared_.Sums(warp_, first_head_ + h)[lane_ + 4 * i] =
              make_float2(sum_[h][2 * i], sum_[h][2 * i + 1]);
        }
      }
    }
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(shared_.SumsFull());
  }

  const RowsParams& p_;
  const ExpandedShared<T> shared_;  // a copy: addresses stay in registers
  const int group_, first_head_, thread_, warp_, lane_;
  uint32_t key_offset_, weights_offset_, stage_ = 0;
  int head_offset_;
  RingPosition at_, to_;  // pages of stages and of tiles of weights
  int n_tasks_ = 0;
  bool shifts_ = false;  // a base is not 0
  uint32_t factor_[kR][4][4];
  uint32_t key_[4][4];
  float score_[kN / 2];
  float sum_[kH][kN / 4];
};

}  // namespace t6::cuda
