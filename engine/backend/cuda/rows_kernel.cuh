// The rows kernels of sm_90a: consumer warpgroups, each with heads of its own, and a warp that streams factor
// pages to them or a warpgroup that expands them. docs/prefill_kernels.md draws both and says what was
// measured.
#pragma once

#include "engine/backend/cuda/rows_params.cuh"
#if T6_PTX_HAS_SM90
#include "engine/backend/cuda/rows_expanded_consumer.cuh"
#include "engine/backend/cuda/rows_expander.cuh"
#include "engine/backend/cuda/rows_factored_consumer.cuh"
#include "engine/backend/cuda/rows_producer.cuh"
#endif

namespace t6::cuda {

#if T6_PTX_HAS_SM90
template <class T>
__device__ void InitRowsBarriers(const RowsShared<T>& shared, int arrivals_when_full) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      ptx::BarrierInit(shared.Full(i), arrivals_when_full);
      ptx::BarrierInit(shared.Empty(i), T::kGroups * 4);
    }
    ptx::BarrierInitFence();
  }
  __syncthreads();
}
// Uniform over a warp, and known to be.
__device__ inline int WarpGroup() { return __shfl_sync(~0u, threadIdx.x / 128, 0); }
#endif

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    FactoredRows(const __grid_constant__ RowsParams p, const __grid_constant__ RowsMaps maps) {
#if T6_PTX_HAS_SM90
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const RowsShared<T> shared(shared_memory);
  const int group = WarpGroup();
  InitRowsBarriers(shared, 1);
  if (group == T::kGroups) {
    wgmma::GiveRegisters<T::kProducerRegisters>();
    if (threadIdx.x / 32 == T::kGroups * 4) RowsProducer<T>(p, maps, shared, threadIdx.x % 32).Run();
  } else {
    wgmma::TakeRegisters<T::kConsumerRegisters>();
    ptx::WaitForPriorKernels();
    FactoredConsumer<T>(p, shared, group, threadIdx.x % 128).Run();
  }
  ptx::LetDependentsLaunch();
#endif
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    ExpandedRows(const __grid_constant__ RowsParams p, const __grid_constant__ RowsMaps maps) {
#if T6_PTX_HAS_SM90
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const RowsShared<T> shared(shared_memory);
  const int group = WarpGroup();
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kFactorStages; ++i) {
      ptx::BarrierInit(shared.FactorsFull(i), 1), ptx::BarrierInit(shared.FactorsEmpty(i), 4);
    }
  }
  InitRowsBarriers(shared, 4);
  if (group == T::kGroups) {
    wgmma::GiveRegisters<T::kExpanderRegisters>();
    RowsExpander<T>(p, maps, shared, threadIdx.x % 128).Run();
  } else {
    wgmma::TakeRegisters<T::kConsumerRegisters>();
    ptx::WaitForPriorKernels();
    ExpandedConsumer<T>(p, shared, group, threadIdx.x % 128).Run();
  }
  ptx::LetDependentsLaunch();
#endif
}

template <int kRank, int kRows>
RowsInstance MakeFactoredInstance() {
  using T = FactoredTraits<kRank, kRows>;
  return {kRank,
          64,
          kRows,
          T::kBlockHeads,
          T::kThreads,
          T::kSharedBytes,
          reinterpret_cast<const void*>(&FactoredRows<T>)};
}
// For blocks of up to `width` rows.
template <int kRank>
RowsInstance MakeExpandedInstance(int width) {
  using T = ExpandedTraits<kRank>;
  return {kRank,
          64,
          width,
          T::kBlockHeads,
          T::kThreads,
          T::kSharedBytes,
          reinterpret_cast<const void*>(&ExpandedRows<T>)};
}

}  // namespace t6::cuda
