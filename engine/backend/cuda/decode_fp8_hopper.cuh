// The decode kernel over fp8 pages on Hopper: a warpgroup has a page, or half of its heads, and the pages
// come from the same producer as everywhere. docs/kernels.md says more and what was measured.
#pragma once

#include <array>

#include "engine/backend/cuda/decode_fp8_warpgroup.cuh"
#include "engine/backend/cuda/decode_instances.h"
#include "engine/backend/cuda/decode_producer.cuh"
#include "engine/backend/cuda/decode_query.cuh"

namespace t6::cuda {

template <class T>
__device__ void ConsumeFp8(const DecodeParams& p, const Fp8Shared<T>& shared, const DecodeBlock* block,
                           int group, int warp, int lane) {
  Fp8Warpgroup<T> own(p, shared, group, warp, lane);
  const int begin = block->begin, end = block->end;
  for (int index = begin; index < end; ++index) {
    const DecodeSegment segment = index == begin ? block->first : p.plan.segments[index];
    if (segment.n_pages == 0) continue;
    QueryFormer<T> former(p, reinterpret_cast<float*>(shared.tiles), group * 4 + warp, lane,
                          T::kConsumers / 32);
    const int64_t angle = static_cast<int64_t>(segment.position) * (p.rotary_dim / 2);
    former.Form(segment, p.cos + angle, p.sin + angle);
    own.Start();
    const int n_full = segment.n_pages - (segment.last_tokens < 64 ? 1 : 0);
    own.AttendFull(n_full);
    if (n_full < segment.n_pages) own.AttendLast(n_full, segment.last_tokens);
    own.Finish(segment, index);
  }
  ptx::WaitForPriorKernels();  // see Consume
}

template <class T>
__global__ void __launch_bounds__((T::kGroups + 1) * 128, 1)
    DecodeFp8(const __grid_constant__ DecodeParams p, const __grid_constant__ CUtensorMap whole,
              const __grid_constant__ CUtensorMap rest) {
#if T6_PTX_HAS_SM90
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const Fp8Shared<T> shared(shared_memory, p.n_stages * p.stage_bytes);
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // uniform, and known to be
  const int warp = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0), lane = threadIdx.x % 32;
  const DecodeBlock* block = p.plan.blocks + blockIdx.x;
  if (threadIdx.x == T::kGroups * 128) {
    ptx::PrefetchTensorMap(&whole);
    ptx::PrefetchTensorMap(&rest);
    for (int i = 0; i < p.n_stages; ++i) {
      ptx::BarrierInit(shared.Full(i), TensorMapCopier::kArrivals);
      ptx::BarrierInit(shared.Empty(i), 4 * T::kHeadGroups);
    }
    ptx::BarrierInitFence();
  }
  ptx::LetDependentsLaunch();
  __syncthreads();
  if (group == T::kGroups) {
    wgmma::GiveRegisters<T::kProducerRegisters>();
    if (warp == 0) {
      StageWriter<T> ring(p, shared);
      const TensorMapCopier copier(p, &whole, &rest);
      Producer<T, TensorMapCopier, StageWriter<T>>(p, copier, ring, lane).Run(block);
    }
  } else {
    wgmma::TakeRegisters<T::kConsumerRegisters>();
    ConsumeFp8<T>(p, shared, block, group, warp, lane);
  }
#endif
}

template <int kRank, int kHeads, int kHeadGroups>
Fp8HopperInstance MakeFp8HopperInstance() {
  using T = Fp8Traits<kRank, kHeads, kHeadGroups>;
  constexpr int kFactorOffset = Fp8Shared<T>::kBarrierBytes + Fp8Shared<T>::kQueryBytes;
  return {kHeads * kHeadGroups, (T::kGroups + 1) * 128, kFactorOffset, Fp8Shared<T>::kBytes,
          reinterpret_cast<const void*>(&DecodeFp8<T>)};
}

template <int kRank>
std::span<const Fp8HopperInstance> MakeFp8HopperInstances() {
  static const std::array kInstances = {
      MakeFp8HopperInstance<kRank, 32, 1>(), MakeFp8HopperInstance<kRank, 48, 1>(),
      MakeFp8HopperInstance<kRank, 64, 1>(), MakeFp8HopperInstance<kRank, 80, 1>(),
      MakeFp8HopperInstance<kRank, 64, 2>(),
  };
  return kInstances;
}

}  // namespace t6::cuda
