// Producer warps of the rows kernels: pages' halves into the ring of stages.
#pragma once

#include "engine/backend/cuda/rows_params.cuh"

namespace t6::cuda {

// All lanes walk; lane 0 issues. Of kProducers warps, which each have halves of their own of every page, so
// that none waits for a stage that another one's readers hold: the stages of a producer are `first`, `first`
// + kProducers and so on.
template <class T, int kProducers>
class RowsProducer {
 public:
  __device__ RowsProducer(const RowsParams& p, const RowsMaps& maps, const RowsShared<T>& shared, int first,
                          int lane)
      : p_(p), maps_(maps), shared_(shared), first_(first), lane_(lane) {}

  // `again`: every task twice.
  __device__ void Run(bool again) {
    const int begin = p_.block_begin[blockIdx.x / T::kCluster],
              end = p_.block_begin[blockIdx.x / T::kCluster + 1];
    for (int index = begin; index < end; ++index) {
      const RowsTask task = TaskOfBlock<T>(p_, index);
      for (int pass = again ? 0 : 1; pass < 2; ++pass) CopyTask(task);
    }
  }

 private:
  __device__ void CopyTask(const RowsTask& task) {
    // Pages that no kernel of this step writes are on their way before the kernels in front are done.
    const int n_old = (task.first_new - task.first_token) / 64;
    for (int base = 0; base < task.n_pages; base += 32) {
      const int n = min(32, task.n_pages - base);
      const int32_t id = lane_ < n ? p_.page_ids[task.page_offset + base + lane_] : 0;
      for (int i = 0; i < n; ++i) {
        const int32_t row = __shfl_sync(~0u, id, i) * 2 * p_.half_rows;
        if (base + i >= n_old) ptx::WaitForPriorKernels();
        if (lane_ == 0) {
#pragma unroll
          for (int half = 0; half < 2; half += kProducers) {
            CopyHalf(row + (half + first_) * p_.half_rows, task.head);
          }
        }
        __syncwarp();
      }
    }
  }
  __device__ void CopyHalf(int32_t row, int head) {
    constexpr int kRows = T::kRank * 64, kOwnRows = kRows / T::kCluster;
    constexpr int kBoxRows = kOwnRows < 256 ? kOwnRows : 256;
    const int own = static_cast<int>(blockIdx.x % T::kCluster) * kOwnRows;
    const int index = at_.stage * kProducers + first_;
    ptx::BarrierWaitPatiently(shared_.Empty(index), at_.parity ^ 1);
    const uint32_t stage = shared_.Stage(index), barrier = shared_.Full(index);
    ptx::BarrierExpectBytes(barrier, T::kRank * (T::kRankBytes + T::kBlockHeads * 128));
#pragma unroll
    for (int done = 0; done < kOwnRows; done += kBoxRows) {
      const int at = own + done;
      ptx::CopyBoxToCluster<T::kCluster>(stage + at * 128, &maps_.factors, 0, row + at, barrier);
    }
#pragma unroll
    for (int r = 0; r < T::kRank; ++r) {
      ptx::CopyBox(stage + T::kRank * T::kRankBytes + r * T::kHeadBytes, &maps_.heads, 0,
                   row + kRows + r * p_.n_heads + head, barrier);
    }
    at_.Advance(T::kStages / kProducers);
  }

  const RowsParams& p_;
  const RowsMaps& maps_;
  const RowsShared<T>& shared_;
  const int first_, lane_;
  RingPosition at_;  // of the producer's own stages
};

}  // namespace t6::cuda
