// The rows kernels of sm_90a: a warp that streams factor pages, and consumer warpgroups, each with heads of
// its own, or one for the scores and one for the values of all of them. docs/prefill_kernels.md draws both
// and says what was measured.
#pragma once

#include "engine/backend/cuda/rows_params.cuh"
#if T6_PTX_HAS_SM90
#include "engine/backend/cuda/rows_collector.cuh"
#include "engine/backend/cuda/rows_factored_consumer.cuh"
#include "engine/backend/cuda/rows_fencer.cuh"
#include "engine/backend/cuda/rows_producer.cuh"
#include "engine/backend/cuda/rows_weigher.cuh"
#endif

namespace t6::cuda {

#if T6_PTX_HAS_SM90
template <class T>
__device__ void InitRowsBarriers(const RowsShared<T>& shared, int key_readers, int value_readers) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      ptx::BarrierInit(shared.Full(i), 1);
      ptx::BarrierInit(shared.Empty(i), i % 2 == 0 ? key_readers : value_readers);
    }
    ptx::BarrierInitFence();
  }
  T::kCluster > 1 ? ptx::ClusterMeet() : __syncthreads();
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
  InitRowsBarriers(shared, T::kGroups * 4, T::kGroups * 4);
  if (group == T::kGroups) {
    wgmma::GiveRegisters<T::kProducerRegisters>();
    if (threadIdx.x / 32 == T::kGroups * 4) {
      RowsProducer<T, 1>(p, maps, shared, 0, threadIdx.x % 32).Run(false);
    }
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
  const ExpandedShared<T> shared(shared_memory);
  const int group = WarpGroup();
  if (threadIdx.x == 0) {
    ptx::BarrierInit(shared.SumsFull(), T::kWeighers * 4), ptx::BarrierInit(shared.SumsEmpty(), 4);
    for (int i = 0; i < T::kWeighers * T::kWeightTiles; ++i) {
      ptx::BarrierInit(shared.WeightsStored(0, i), 4), ptx::BarrierInit(shared.WeightsFull(0, i), 1);
      ptx::BarrierInit(shared.WeightsEmpty(0, i), 4);
    }
    *shared.again = 0;
  }
  InitRowsBarriers(shared, T::kWeighers * 4 * T::kCluster, 4 * T::kCluster);
  // Everyone's share of the tasks, and once more where weights were too much.
  const auto run = [&shared](auto& role) {
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      role.Run(pass > 0);
      ptx::ClusterMeet();  // nobody leaves whose barriers or stages another block still uses
      if (*shared.again == 0) break;
    }
  };
  if (group == T::kWeighers + 1) {
    wgmma::GiveRegisters<T::kProducerRegisters>();
    if (p.combine_follows) ptx::LetDependentsLaunch();
    static_assert(T::kWeighers == 2);  // four warps: two producers and as many fencers
    const int warp = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0), lane = threadIdx.x % 32;
    if (warp < 2) {
      RowsProducer<T, 2> producer(p, maps, shared, warp, lane);
      run(producer);
    } else {
      RowsFencer<T> fencer(p, shared, warp - 2, lane);
      run(fencer);
    }
  } else if (group < T::kWeighers) {
    wgmma::TakeRegisters<T::kWeigherRegisters>();
    RowsWeigher<T> weigher(p, shared, group, threadIdx.x % 128);
    run(weigher);
  } else {
    wgmma::TakeRegisters<T::kCollectorRegisters>();
    RowsCollector<T> collector(p, shared, threadIdx.x % 128);
    run(collector);
  }
  // In every block, so that "this kernel is done" means that those in front are.
  ptx::WaitForPriorKernels();
  ptx::LetDependentsLaunch();
#endif
}

template <int kRank, int kRows>
RowsInstance MakeFactoredInstance() {
  using T = FactoredTraits<kRank, kRows>;
  return {kRank,       64,          kRows,           T::kBlockHeads,
          T::kCluster, T::kThreads, T::kSharedBytes, reinterpret_cast<const void*>(&FactoredRows<T>)};
}
// For blocks of up to `width` rows.
template <int kRank, int kRows, int kHeads>
RowsInstance MakeExpandedInstance(int width) {
  using T = ExpandedTraits<kRank, kRows, kHeads>;
  return {kRank,       64,          width,           T::kBlockHeads,
          T::kCluster, T::kThreads, T::kSharedBytes, reinterpret_cast<const void*>(&ExpandedRows<T>)};
}

}  // namespace t6::cuda
