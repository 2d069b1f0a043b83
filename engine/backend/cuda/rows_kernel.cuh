// The rows kernel of sm_90a: two or three consumer warpgroups, each with heads of its own, and a producer
// warp that streams factor pages for both. docs/prefill_kernels.md draws it and says what was measured.
#pragma once

#include "engine/backend/cuda/rows_params.cuh"
#if T6_PTX_HAS_SM90
#include "engine/backend/cuda/rows_consumer.cuh"
#include "engine/backend/cuda/rows_factored.cuh"
#include "engine/backend/cuda/rows_finish.cuh"
#include "engine/backend/cuda/rows_producer.cuh"
#endif

namespace t6::cuda {

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    RowsAttention(const __grid_constant__ RowsParams p, const __grid_constant__ RowsMaps maps) {
#if T6_PTX_HAS_SM90
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const RowsShared<T> shared(shared_memory);
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // uniform, and known to be
  constexpr int kConsumerWarps = T::kGroups * 4;

  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      ptx::BarrierInit(shared.Full(i), 1);
      ptx::BarrierInit(shared.Empty(i), kConsumerWarps);
    }
    ptx::BarrierInit(shared.QueryFull(), 1);
    ptx::BarrierInit(shared.QueryEmpty(), kConsumerWarps);
    ptx::BarrierInitFence();
  }
  __syncthreads();
  ptx::WaitForPriorKernels();

  if (group == T::kGroups) {
    wgmma::GiveRegisters<T::kProducerRegisters>();
    if (threadIdx.x / 32 == kConsumerWarps) RowsProducer<T>(p, maps, shared, threadIdx.x % 32).Run();
  } else {
    wgmma::TakeRegisters<T::kConsumerRegisters>();
    RowsConsumer<T>(p, shared, group, threadIdx.x % 128).Run();
  }
  ptx::LetDependentsLaunch();
#endif
}

template <class T>
RowsInstance MakeRowsInstance() {
  return {T::kRank,
          T::kDim,
          T::kRows,
          T::kBlockHeads,
          T::kThreads,
          T::kSharedBytes,
          reinterpret_cast<const void*>(&RowsAttention<T>)};
}

}  // namespace t6::cuda
