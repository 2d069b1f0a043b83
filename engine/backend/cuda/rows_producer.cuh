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
      : p_(p), maps_(maps), shared_(shared), first_(first), lane_(lane), policy_(ptx::EvictNormalPolicy()) {}

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
    for (int base = 0; base < task.n_pages; base += 32) {
      const int n = min(32, task.n_pages - base);
      const int32_t id = lane_ < n ? p_.page_ids[task.page_offset + base + lane_] : 0;
      for (int i = 0; i < n; ++i) {
        const int32_t row = __shfl_sync(~0u, id, i) * 2 * p_.half_rows;
        if (task.first_token + (base + i + 1) * 64 > task.first_new) WaitForWrites();
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
  // Pages that no kernel of this step writes are on their way before the kernels in front are done.
  __device__ void WaitForWrites() {
    if (!waited_) ptx::WaitForPriorKernels();
    waited_ = true;
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
      ptx::CopyBoxToCluster<T::kCluster>(stage + at * 128, &maps_.factors, 0, row + at, barrier, policy_);
    }
#pragma unroll
    for (int r = 0; r < T::kRank; ++r) {
      ptx::CopyBox(stage + T::kRank * T::kRankBytes + r * T::kHeadBytes, &maps_.heads, 0,
                   row + kRows + r * p_.n_heads + head, barrier, policy_);
    }
    at_.Advance(T::kStages / kProducers);
  }

  const RowsParams& p_;
  const RowsMaps& maps_;
  const RowsShared<T>& shared_;
  const int first_, lane_;
  uint64_t policy_;
  RingPosition at_;  // of the producer's own stages
  bool waited_ = false;
};

}  // namespace t6::cuda
