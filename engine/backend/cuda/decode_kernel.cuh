// The decode kernel, with tensor maps for sm_90a and without for sm_80 and up. One persistent block walks its
// segments; a producer warp streams halves of pages into a ring of stages, consumer warps own 16 heads x
// kWarpTokens tokens each and keep a running softmax in registers. docs/kernels.md draws it and says what was
// measured.
#pragma once

#include <type_traits>

#include "engine/backend/cuda/decode_consumer.cuh"
#include "engine/backend/cuda/decode_fp8.cuh"
#include "engine/backend/cuda/decode_instances.h"
#include "engine/backend/cuda/decode_newest.cuh"
#include "engine/backend/cuda/decode_producer.cuh"
#include "engine/backend/cuda/decode_query.cuh"
#include "engine/backend/cuda/step_query.cuh"

namespace t6::cuda {

// Adds the token groups' results of every head and writes the segment's: the output itself where it is the
// sequence's only segment, else a partial. A thread has four columns of every kIterations-th head, and reads
// all that it needs for some of them before it adds.
template <class T>
__device__ void MergeGroups(const DecodeParams& p, const DecodeSegment& segment, int index,
                            const float* merge, const float2* max_sum, int thread, int n_threads) {
  constexpr int kQuads = T::kDim / 4, kGroups = T::kTokenGroups;
  // n_threads = tiles * groups * 32, for tiles * 16 heads.
  constexpr int kIterations = (kQuads + 2 * kGroups - 1) / (2 * kGroups);
  constexpr int kAtOnce = kIterations * kGroups <= 8 ? kIterations : 8 / kGroups;
  static_assert(kIterations % kAtOnce == 0);
  const bool writes_output = segment.is_whole && !p.head_norm;
  const int column = thread % kQuads * 4, heads_apart = n_threads / kQuads;
#pragma unroll
  for (int done = 0; done < kIterations; done += kAtOnce) {
    float2 ms[kAtOnce][kGroups];
    float4 o[kAtOnce][kGroups];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int head = min(thread / kQuads + (done + i) * heads_apart, p.n_heads - 1);
      const int warp0 = head / kTileHeads * kGroups, row = head % kTileHeads;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        ms[i][g] = max_sum[(warp0 + g) * 16 + row];
        o[i][g] = *reinterpret_cast<const float4*>(merge + (warp0 + g) * 16 * T::kDim +
                                                   T::MergeOffset(row, column));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int head = thread / kQuads + (done + i) * heads_apart;
      float most = kNoMax, total = 0.0f;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) most = fmaxf(most, ms[i][g].x);
      float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const float factor = ptx::Exp2(ms[i][g].x - most);
        total = fmaf(factor, ms[i][g].y, total);
        out.x = fmaf(factor, o[i][g].x, out.x), out.y = fmaf(factor, o[i][g].y, out.y);
        out.z = fmaf(factor, o[i][g].z, out.z), out.w = fmaf(factor, o[i][g].w, out.w);
      }
      if (head >= p.n_heads) continue;
      if (writes_output) {
        const float scale = 1.0f / (total * T::kRank);
        p.out.Store((static_cast<int64_t>(segment.row) * p.n_heads + head) * T::kDim + column,
                    make_float4(out.x * scale, out.y * scale, out.z * scale, out.w * scale));
      } else {
        const int64_t slot = static_cast<int64_t>(index) * p.n_heads + head;
        *reinterpret_cast<float4*>(p.partials.out + slot * T::kDim + column) = out;
        if (column == 0) p.partials.max_sum[slot] = make_float2(most, total);
      }
    }
  }
}

// The same in the step kernel, of the tiles' heads, handing partials to whoever awaits them: the output
// itself where it is the sequence's only segment, else a partial.
template <class T>
__device__ void HandOverGroups(const DecodeParams& p, const HeadTiles& tiles, const DecodeSegment& segment,
                               int index, const float* merge, const float2* max_sum, int thread,
                               int n_threads) {
  constexpr int kQuads = T::kDim / 4;
  const bool writes_output = segment.is_whole && !p.head_norm;
  const int first_head = tiles.first * kTileHeads;
  const int n_heads = min(tiles.count * kTileHeads, p.n_heads - first_head);
  for (int item = thread; item < n_heads * kQuads; item += n_threads) {
    const int own_head = item / kQuads, column = item % kQuads * 4;
    const int head = first_head + own_head;
    const int warp0 = own_head / kTileHeads * T::kTokenGroups, row = own_head % kTileHeads;
    float most = kNoMax;
#pragma unroll
    for (int g = 0; g < T::kTokenGroups; ++g) most = fmaxf(most, max_sum[(warp0 + g) * 16 + row].x);
    float total = 0.0f;
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int g = 0; g < T::kTokenGroups; ++g) {
      const float2 ms = max_sum[(warp0 + g) * 16 + row];
      const float factor = ptx::Exp2(ms.x - most);
      const float4 o =
          *reinterpret_cast<const float4*>(merge + (warp0 + g) * 16 * T::kDim + T::MergeOffset(row, column));
      total = fmaf(factor, ms.y, total);
      out.x = fmaf(factor, o.x, out.x), out.y = fmaf(factor, o.y, out.y);
      out.z = fmaf(factor, o.z, out.z), out.w = fmaf(factor, o.w, out.w);
    }
    if (writes_output) {
      const float scale = 1.0f / (total * T::kRank);
      p.out.Store((static_cast<int64_t>(segment.row) * p.n_heads + head) * T::kDim + column,
                  make_float4(out.x * scale, out.y * scale, out.z * scale, out.w * scale));
    } else {
      const int64_t slot = static_cast<int64_t>(index) * p.n_heads + head;
      auto* to = reinterpret_cast<float4*>(p.partials.out + slot * T::kDim + column);
      HandOver(to, out);
      if (column == 0) HandOver(p.partials.max_sum + slot, make_float2(most, total));
    }
  }
}

// The ring as a consumer warp sees it.
template <class T>
class StageReader {
 public:
  __device__ StageReader(const DecodeParams& p, const BlockShared<T>& shared, int lane)
      : p_(p), shared_(shared), lane_(lane) {}

  // The next stage's offset in the ring, when it is there. The one before goes back only now: the assembler
  // moves an arrival above the products whose operands it frees, but nothing over a wait's loop.
  __device__ int Next(int /*bytes*/) {
    ptx::BarrierWait(shared_.Full(at_.stage), at_.parity);
    __syncwarp();  // lane 0 speaks for what all of them have read
    if (release_ >= 0 && lane_ == 0) ptx::BarrierArrive(shared_.Empty(release_));
    release_ = at_.stage;
    at_.Advance(p_.n_stages);
    return release_ * p_.stage_bytes;
  }

 private:
  const DecodeParams& p_;
  const BlockShared<T>& shared_;
  int lane_;
  RingPosition at_;
  int release_ = -1;  // the stage that was read last
};

// By tiles.count * kTokenGroups warps. `first`: of the block's first segment, from where the caller has it;
// or null: from the tables.
template <class T, bool kAwaits = false, class Ring>
__device__ void Consume(const DecodeParams& p, const HeadTiles& tiles, const BlockShared<T>& shared,
                        const DecodeBlock* block, const SegmentPlan* first, Ring& ring, int warp, int lane) {
  const int n_warps = tiles.count * T::kTokenGroups, n_threads = n_warps * 32;
  const int head_tile = tiles.first + warp / T::kTokenGroups, token_group = warp % T::kTokenGroups;
  const int first_token = token_group * T::kWarpTokens;
  std::conditional_t<T::kFp8, Fp8ConsumerWarp<T>, ConsumerWarp<T>> own(p, head_tile, token_group, lane);
  const auto next_stage = [&] { return shared.ring_address + ring.Next(p.stage_bytes); };

  const int begin = block->begin, end = block->end;
  for (int index = begin; index < end; ++index) {
    const DecodeSegment segment = index == begin ? block->first : p.plan.segments[index];
    if (segment.n_pages == 0) continue;
    std::conditional_t<kAwaits, StepQueryFormer<T>, QueryFormer<T>> former(p, tiles, shared.merge(), warp,
                                                                           lane, n_warps);
    const int64_t angle = static_cast<int64_t>(segment.position) * (p.rotary_dim / 2);
    const SegmentPlan plan = first != nullptr && index == begin
                                 ? *first
                                 : SegmentPlan{p.cos + angle, p.sin + angle,
                                               p.page_ids + segment.page_offset + segment.n_pages - 1};
    former.Form(segment, plan.cos, plan.sin);
    constexpr int kTileBytes = kTileHeads * QueryRows<T>::kStride * 2;
    own.Start(ptx::SharedAddress(shared.merge()) - tiles.first * kTileBytes, head_tile, lane, p.n_heads);
    ptx::NamedBarrier(kConsumerBarrier, n_threads);

    const bool puts_newest = !T::kFp8 && p.stores && segment.holds_newest;
    // The next stage, with the new token in it.
    const auto newest_stage = [&](int half) {
      const int offset = ring.Next(p.stage_bytes);
      if constexpr (!T::kFp8) {
        if (puts_newest) {
          PutNewest<T>(p, segment, plan, half, former.new_factors(), shared.ring + offset, warp * 32 + lane,
                       n_threads);
          ptx::NamedBarrier(kConsumerBarrier, n_threads);
        }
      }
      return shared.ring_address + offset;
    };
    const int n_full = segment.n_pages - (segment.last_tokens < 64 || puts_newest ? 1 : 0);
    for (int page = 0; page < n_full; ++page) {
      own.Score(next_stage());
      own.Weigh();
      own.template Accumulate<false>(next_stage(), 64, lane);
    }
    if (n_full < segment.n_pages) {
      const int valid = segment.last_tokens - first_token;
      own.Score(newest_stage(0));
      own.Mask(valid, lane);
      own.Weigh();
      own.template Accumulate<true>(newest_stage(1), valid, lane);
    }

    float2* max_sum = shared.max_sum(n_warps);
    own.Publish(shared.merge() + warp * 16 * T::kDim, max_sum + warp * 16, lane);
    ptx::NamedBarrier(kConsumerBarrier, n_threads);
    const int thread = warp * 32 + lane;
    if constexpr (kAwaits) {
      HandOverGroups<T>(p, tiles, segment, index, shared.merge(), max_sum, thread, n_threads);
    } else {
      MergeGroups<T>(p, segment, index, shared.merge(), max_sum, thread, n_threads);
    }
    ptx::NamedBarrier(kConsumerBarrier, n_threads);
  }
  ptx::WaitForPriorKernels();  // in every block, so that "this kernel is done" means that those in front are
}

// `copier` says how pages get into the ring.
template <class T, class Copier>
__device__ void RunBlock(const DecodeParams& p, const Copier& copier, unsigned char* shared_memory) {
  const BlockShared<T> shared(shared_memory, p.n_stages * p.stage_bytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n_consumers = p.head_tiles * T::kTokenGroups;
  const bool produces = warp == n_consumers;
  const DecodeBlock* block = p.plan.blocks + blockIdx.x;
  // Asked for at once: what is there before the first copy is memory's time lost.
  const BlockRecord record = produces ? BlockRecord(block, lane) : BlockRecord();

  if (produces && lane < p.n_stages) {
    ptx::BarrierInit(shared.Full(lane), Copier::kArrivals);
    ptx::BarrierInit(shared.Empty(lane), n_consumers);
    ptx::BarrierInitFence();
  }
  ptx::LetDependentsLaunch();
  __syncthreads();

  if (produces) {
    StageWriter<T> ring(p, shared);
    Producer<T, Copier, StageWriter<T>>(p, copier, ring, lane).Run(record);
  } else {
    StageReader<T> ring(p, shared, lane);
    Consume<T>(p, {0, p.head_tiles}, shared, block, nullptr, ring, warp, lane);
  }
}

template <class T>
__global__ void __maxnreg__(T::kMaxRegisters)
    DecodeAttention(const __grid_constant__ DecodeParams p, const __grid_constant__ CUtensorMap whole,
                    const __grid_constant__ CUtensorMap rest) {
#if T6_PTX_HAS_SM90
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  if (threadIdx.x == 0) {
    ptx::PrefetchTensorMap(&whole);
    ptx::PrefetchTensorMap(&rest);
  }
  RunBlock<T>(p, TensorMapCopier(p, &whole, &rest), shared_memory);
#endif
}

template <class T>
__global__ void __launch_bounds__(T::kMaxThreads, 1)
    DecodeAttentionPortable(const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  RunBlock<T>(p, ChunkCopier(p, threadIdx.x % 32), shared_memory);
}

template <class T>
DecodeInstance MakeDecodeInstance() {
  const void* kernel = nullptr;
  if constexpr (!T::kFp8) kernel = reinterpret_cast<const void*>(&DecodeAttention<T>);
  return {T::kRank,
          T::kDim,
          T::kFp8,
          T::kWarpTokens,
          T::kMaxThreads / 32,
          T::kCombineBeside,
          kernel,
          reinterpret_cast<const void*>(&DecodeAttentionPortable<T>)};
}

}  // namespace t6::cuda
