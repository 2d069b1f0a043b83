// A warp of the rows kernel on expanded keys and values that takes a weigher's stored weights and gives them
// to the collector. Between stores and warpgroup products there has to be a fence, which takes 130 clocks:
// here it lies on the way from one to the other, but is not time of either's chain.
#pragma once

#include "engine/backend/cuda/prefill_wgmma.cuh"
#include "engine/backend/cuda/rows_params.cuh"

namespace t6::cuda {

template <class T>
class RowsFencer {
 public:
  __device__ RowsFencer(const RowsParams& p, const ExpandedShared<T>& shared, int weigher, int lane)
      : p_(p), shared_(shared), weigher_(weigher), lane_(lane) {}

  // The first of two runs over the tasks, or the second: there are weights in either.
  __device__ void Run(bool) {
    const int end = p_.block_begin[blockIdx.x / T::kCluster + 1];
    for (int index = p_.block_begin[blockIdx.x / T::kCluster]; index < end; ++index) {
      if (lane_ == 0) FenceTask(p_.tasks[index].n_pages);
      __syncwarp();
    }
  }

 private:
  __device__ void FenceTask(int n_pages) {
#pragma unroll 1
    for (int page = 0; page < n_pages; ++page) {
#pragma unroll
      for (int h = 0; h < T::kOwnHeads; ++h) {
        const int tile = at_.stage * T::kOwnHeads + h;
        ptx::BarrierWait(shared_.WeightsStored(weigher_, tile), at_.parity);
        wgmma::FenceShared();
        ptx::BarrierArrive(shared_.WeightsFull(weigher_, tile));
      }
      at_.Advance(T::kWeightSlots);
    }
  }

  const RowsParams& p_;
  const ExpandedShared<T>& shared_;
  const int weigher_, lane_;
  RingPosition at_;  // pages of tiles of weights
};

}  // namespace t6::cuda
