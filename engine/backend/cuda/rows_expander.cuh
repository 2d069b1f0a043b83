// The expander warpgroup of the rows kernel: copies halves of factor pages into a ring of its own and makes
// keys, then values, of them for all heads of the task, times their rank. A thread has half of a token's
// numbers; their B stays in registers for all heads.
#pragma once

#include "engine/backend/cuda/prefill_wgmma.cuh"
#include "engine/backend/cuda/rows_params.cuh"

namespace t6::cuda {

template <class T>
class RowsExpander {
 public:
  __device__ RowsExpander(const RowsParams& p, const RowsMaps& maps, const RowsShared<T>& shared, int thread)
      : p_(p),
        maps_(maps),
        shared_(shared),
        copies_(thread == 0),
        token_(thread % 64),
        offset_(token_ * 128 + ((thread / 64 * 4 ^ (token_ & 7)) << 4)) {}

  __device__ void Run() {
    const int begin = p_.block_begin[blockIdx.x], end = p_.block_begin[blockIdx.x + 1];
    if (begin == end) return;
    if (copies_) {
      next_task_ = begin;
      BeginTask();
      for (int i = 0; i + 1 < T::kFactorStages; ++i) CopyNext(end);
    }
    for (int index = begin; index < end; ++index) {
      const int n_pages = p_.tasks[index].n_pages;
      int n_tokens = p_.tasks[index].n_tokens - p_.tasks[index].first_token;  // that exist from the page on
      for (int half = 0; half < 2 * n_pages; ++half) {
        n_tokens < 64 ? ExpandHalf<true>(n_tokens) : ExpandHalf<false>(64);
        if (half % 2 != 0) n_tokens -= 64;
        if (copies_) CopyNext(end);
        __syncwarp();
      }
    }
  }

 private:
  static constexpr int kR = T::kRank;

  // --- one thread's: what is copied next
  __device__ void BeginTask() {
    const RowsTask& task = p_.tasks[next_task_];
    next_page_ = task.page_offset, rest_ = task.n_pages;
    old_ = (task.first_new - task.first_token) / 64;
    next_id_ = p_.page_ids[next_page_];
    copies_values_ = false;
  }
  // Into the stage that was read before the one that was read last, when everyone is done with it.
  __device__ void CopyNext(int end) {
    if (next_task_ == end) return;
    // Pages that no kernel of this step writes are on their way before the kernels in front are done.
    if (!waited_ && old_ <= 0) ptx::WaitForPriorKernels(), waited_ = true;
    const int row = (next_id_ * 2 + (copies_values_ ? 1 : 0)) * p_.half_rows;
    const uint32_t stage = shared_.Factors(to_.stage), barrier = shared_.FactorsFull(to_.stage);
    const uint64_t policy = ptx::EvictNormalPolicy();
    ptx::BarrierWait(shared_.FactorsEmpty(to_.stage), to_.parity ^ 1);
    ptx::BarrierExpectBytes(barrier, kR * (T::kRankBytes + T::kBlockHeads * 128));
    ptx::CopyBox(stage, &maps_.factors, 0, row, barrier, policy);
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      ptx::CopyBox(stage + kR * T::kRankBytes + r * T::kHeadBytes, &maps_.heads, 0,
                   row + kR * 64 + r * p_.n_heads + p_.tasks[next_task_].head, barrier, policy);
    }
    to_.Advance(T::kFactorStages);
    copies_values_ = !copies_values_;
    if (copies_values_) return;
    if (--old_, --rest_ > 0) {
      next_id_ = p_.page_ids[++next_page_];  // first used a half page later
    } else if (++next_task_ != end) {
      BeginTask();
    }
  }

  // --- everyone's
  // The next half page. n_tokens: of the page that exist; the others come out as 0, whatever their factors.
  template <bool kMasks>
  __device__ void ExpandHalf(int n_tokens) {
    ptx::BarrierWait(shared_.FactorsFull(from_.stage), from_.parity);
    const uint32_t factors = shared_.Factors(from_.stage);
    const uint32_t row = factors + kR * T::kRankBytes + token_ * 2;  // its 16 bytes swizzled by the head
    uint32_t a[T::kBlockHeads][kR];
#pragma unroll
    for (int head = 0; head < T::kBlockHeads; ++head) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const uint32_t x = ptx::LoadShared16((row ^ (head << 4)) + head * 128 + r * T::kHeadBytes);
        a[head][r] = x | x << 16;
      }
    }
    ptx::BarrierWait(shared_.Empty(at_.stage), at_.parity ^ 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t b[kR][4];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        ptx::LoadShared16Bytes(((factors + offset_) ^ (i << 4)) + r * T::kRankBytes, b[r]);
      }
      const uint32_t tile = (shared_.Stage(at_.stage) + offset_) ^ (i << 4);
#pragma unroll
      for (int head = 0; head < T::kBlockHeads; ++head) {
        uint32_t x[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          x[k] = ptx::MultiplyBf16(a[head][0], b[0][k]);
#pragma unroll
          for (int r = 1; r < kR; ++r) x[k] = ptx::MultiplyAddBf16(a[head][r], b[r][k], x[k]);
          if (kMasks && token_ >= n_tokens) x[k] = 0;
        }
        ptx::StoreShared16Bytes(tile + head * T::kTileBytes, x);
      }
    }
    wgmma::FenceShared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ptx::BarrierArrive(shared_.Full(at_.stage)), ptx::BarrierArrive(shared_.FactorsEmpty(from_.stage));
    }
    at_.Advance(T::kStages), from_.Advance(T::kFactorStages);
  }

  const RowsParams& p_;
  const RowsMaps& maps_;
  const RowsShared<T>& shared_;
  const bool copies_;
  const int token_;
  const uint32_t offset_;  // of the first 8 of the thread's numbers in rows of 128 bytes, swizzled
  RingPosition from_, to_, at_;
  // Of the page that is copied next: task, index in page_ids, id; pages of the task from it on, and of those
  // that no kernel of this step writes.
  int next_task_, next_page_, next_id_, rest_, old_;
  bool copies_values_, waited_ = false;
};

}  // namespace t6::cuda
