// The decode kernel over fp8 pages on Hopper: a warpgroup has a page, or half of its heads, and the pages
// come from the same producer as everywhere. docs/kernels.md says more and what was measured.
#pragma once

#include <array>

#include "engine/backend/cuda/decode_fp8_warpgroup.cuh"
#include "engine/backend/cuda/decode_instances.h"
#include "engine/backend/cuda/decode_query.cuh"

namespace t6::cuda {

// Adds the warpgroups' results of every head, that of `first` first: so the bits are the same whichever had a
// segment's first page. Writes the segment's: the output itself where it is the sequence's only one, else a
// partial.
template <class T>
__device__ void JoinGroups(const DecodeParams& p, const Fp8Shared<T>& shared, const DecodeSegment& segment,
                           int index, int first, int thread) {
  constexpr int kQuads = T::kDim / 4, kJoined = T::kPageGroups;
  const bool writes_output = segment.is_whole && !p.head_norm;
  const AttentionOutput to = writes_output ? p.out : AttentionOutput{p.partials.out, false};
  const int64_t row = static_cast<int64_t>(writes_output ? segment.row : index) * p.n_heads;
#pragma unroll 1
  for (int item = thread; item < p.n_heads * kQuads; item += T::kConsumers) {
    const int head = item / kQuads, number = item % kQuads * 4;
    const int head_group = T::kHeadGroups > 1 ? head / T::kHeads : 0,
              own_head = head - head_group * T::kHeads;
    float2 ms[kJoined];
    float4 o[kJoined];
    float most = kNoMax, total = 0.0f;
#pragma unroll
    for (int k = 0; k < kJoined; ++k) {
      const int group = T::kHeadGroups > 1 ? head_group : (first + k) % kJoined;
      ms[k] = shared.OfGroup(group).max_sum[own_head];
      o[k] = *reinterpret_cast<const float4*>(shared.Out(group, own_head, number));
      most = fmaxf(most, ms[k].x);
    }
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < kJoined; ++k) {
      const float factor = ptx::Exp2(ms[k].x - most);
      total = fmaf(factor, ms[k].y, total);
      sum.x = fmaf(factor, o[k].x, sum.x), sum.y = fmaf(factor, o[k].y, sum.y);
      sum.z = fmaf(factor, o[k].z, sum.z), sum.w = fmaf(factor, o[k].w, sum.w);
    }
    const float share = writes_output ? ptx::Reciprocal(total * T::kRank) : 1.0f;
    to.Store((row + head) * T::kDim + number,
             make_float4(sum.x * share, sum.y * share, sum.z * share, sum.w * share));
    if (!writes_output && number == 0) p.partials.max_sum[row + head] = make_float2(most, total);
  }
}

template <class T>
__device__ void ConsumeFp8(const DecodeParams& p, const Fp8Shared<T>& shared, const DecodeBlock* block,
                           Fp8StageReader<T>& ring, int group, int warp, int lane) {
  Fp8Warpgroup<T> own(p, shared, ring, group, warp, lane);
  const int begin = block->begin, end = block->end;
  for (int index = begin; index < end; ++index) {
    const DecodeSegment segment = index == begin ? block->first : p.plan.segments[index];
    if (segment.n_pages == 0) continue;
    QueryFormer<T> former(p, reinterpret_cast<float*>(shared.tiles), group * 4 + warp, lane,
                          T::kConsumers / 32);
    const int64_t angle = static_cast<int64_t>(segment.position) * (p.rotary_dim / 2);
    former.Form(segment, p.cos + angle, p.sin + angle);
    own.Start();
    own.Attend(segment);
    own.Publish();
    ptx::NamedBarrier(kConsumerBarrier, T::kConsumers);
    JoinGroups<T>(p, shared, segment, index, own.first_turn(), (group * 4 + warp) * 32 + lane);
    ptx::NamedBarrier(kConsumerBarrier, T::kConsumers);
  }
  ptx::WaitForPriorKernels();  // see Consume
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
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
  DecodeParams part = p;
  Fp8Shared<T> part_shared = shared;
  if (group == T::kGroups) {
    wgmma::GiveRegisters<T::kProducerRegisters>();
    if (warp < T::kPageGroups) {
      TakeRingPart(warp, part, part_shared);
      Fp8StageWriter<T> ring(part, part_shared, warp);
      const TensorMapCopier copier(p, &whole, &rest);
      Producer<T, TensorMapCopier, Fp8StageWriter<T>>(p, copier, ring, lane).Run(block);
    }
  } else {
    wgmma::TakeRegisters<T::kConsumerRegisters>();
    TakeRingPart(group, part, part_shared);
    Fp8StageReader<T> ring(part, part_shared, lane);
    ConsumeFp8<T>(p, shared, block, ring, group, warp, lane);
  }
#endif
}

template <int kRank, int kHeads, int kHeadGroups, int kPageGroups>
Fp8HopperInstance MakeFp8HopperInstance() {
  using T = Fp8Traits<kRank, kHeads, kHeadGroups, kPageGroups>;
  constexpr int kFactorOffset = Fp8Shared<T>::kBarrierBytes + Fp8Shared<T>::kQueryBytes;
  return {kHeads * kHeadGroups, T::kThreads, kFactorOffset, Fp8Shared<T>::kBytes,
          reinterpret_cast<const void*>(&DecodeFp8<T>)};
}

template <int kRank>
std::span<const Fp8HopperInstance> MakeFp8HopperInstances() {
  constexpr int kMore = kRank == 1 ? 3 : 2;  // as registers allow
  static const std::array kInstances = {
      MakeFp8HopperInstance<kRank, 32, 1, 3>(), MakeFp8HopperInstance<kRank, 48, 1, kMore>(),
      MakeFp8HopperInstance<kRank, 64, 1, 2>(), MakeFp8HopperInstance<kRank, 80, 1, 2>(),
      MakeFp8HopperInstance<kRank, 64, 2, 1>(),
  };
  return kInstances;
}

}  // namespace t6::cuda
