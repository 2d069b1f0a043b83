// The kernel that runs a step's program. One block a multiprocessor, all resident. A producer warp walks the
// program ahead of the others and keeps the ring full: weights and pages depend on nothing that the step
// computes, since the block that attends to a sequence's newest page puts the new token into its own copy.
// The consumer warps do an instruction, then meet those of all other blocks.
#pragma once

#include "engine/backend/cuda/decode_combine.cuh"
#include "engine/backend/cuda/decode_kernel.cuh"
#include "engine/backend/cuda/item_ring.cuh"
#include "engine/backend/cuda/product.cuh"
#include "engine/backend/cuda/step_instances.h"

namespace t6::cuda {

static_assert(kItemSlots == kMaxStages, "the ring's barriers lie where decode's do");

// Lets each block's consumers go on when those of all have come. The last of a launch sets the count back.
template <int kThreads>
class GridBarrier {
 public:
  static constexpr int kBarrier = 3;

  __device__ explicit GridBarrier(uint32_t* count) : count_(count) {}

  __device__ void Wait() {
    target_ += gridDim.x;
    ptx::NamedBarrier(kBarrier, kThreads);
    if (threadIdx.x == 0) {
      ptx::AddRelease(count_, 1);
      while (ptx::LoadAcquire(count_) < target_) {
      }
    }
    ptx::NamedBarrier(kBarrier, kThreads);
  }
  __device__ void Leave() {
    if (threadIdx.x == 0 && atomicAdd(count_, 1) == target_ + gridDim.x - 1) *count_ = 0;
  }

 private:
  uint32_t* count_;
  uint32_t target_ = 0;
};

template <class T, int kRowTiles>
class StepBlock {
 public:
  static constexpr int kWarps = T::kMaxThreads / 32 - 1, kThreads = kWarps * 32;
  using Products = Product<kRowTiles, kWarps>;
  using BlockCombiner = Combiner<T::kDim, kThreads>;
  using WarpCombiner = Combiner<T::kDim, 32>;
  static_assert(sizeof(typename Products::Shared) <= kWarps * Exchange<T>::kWarpBytes);
  static_assert(sizeof(typename BlockCombiner::Shared) <= kWarps * Exchange<T>::kWarpBytes);
  static_assert(kWarps * sizeof(typename WarpCombiner::Shared) <= kWarps * Exchange<T>::kWarpBytes);

  struct Shared {  // besides the ring and the exchange
    alignas(16) StepOperation operations[2];
    uint32_t begins[kItemSlots];
    // Of the step's plan, the same in every layer.
    DecodeBlock block;
    float cos[T::kDim / 2], sin[T::kDim / 2];
    int32_t last_page;
    DecodeSequence sequence;
  };

  __device__ StepBlock(const StepLaunch& launch, unsigned char* memory, Shared& own)
      : launch_(launch),
        shared_(memory, launch.ring_bytes),
        own_(own),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {}

  __device__ void Run() {
    const ItemBarriers barriers{shared_.barrier_address};
    const bool produces = warp_ == kWarps;
    if (produces && lane_ == 0) barriers.Init(kWarps);
    __syncthreads();
    if (produces) {
      ItemWriter ring(shared_.ring_address, launch_.ring_bytes, barriers, own_.begins);
      for (int i = 0; i < launch_.n_instructions; ++i) Produce(launch_.program[i], ring);
    } else {
      ItemReader ring(launch_.ring_bytes, barriers, lane_);
      ConsumeAll(ring);
    }
  }

 private:
  __device__ void Produce(const StepInstruction& instruction, ItemWriter& ring) {
    const StepOperation& operation = instruction.operation;
    if (operation.kind == StepOperation::kProduct)
      FillProduct(operation.product, operation.shape, ring, lane_);
    if (operation.kind != StepOperation::kAttend) return;
    const DecodeParams p = operation.decode;  // a copy: see FillProduct
    const TensorMapCopier copier(p, &instruction.maps.whole, &instruction.maps.rest);
    Producer<T, TensorMapCopier, ItemWriter>(p, copier, ring, lane_).Run(p.plan.blocks + blockIdx.x);
  }

  __device__ void ConsumeAll(ItemReader& ring) {
    GridBarrier<kThreads> all(launch_.count);
    FetchOperation(0);
    for (int i = 0; i < launch_.n_instructions; ++i) {
      if (i == 0) {
        ptx::WaitForChunks();
        ptx::NamedBarrier(GridBarrier<kThreads>::kBarrier, kThreads);
        ReadClock(0);
      }
      const StepOperation& operation = own_.operations[i & 1];
      if (i + 1 < launch_.n_instructions) FetchOperation(i + 1);
      switch (operation.kind) {
        case StepOperation::kProduct:
          Products(operation.product, operation.shape,
                   *reinterpret_cast<typename Products::Shared*>(shared_.merge()), warp_, lane_)
              .Run(ring, shared_.ring_address);
          break;
        case StepOperation::kAttend:
          Attend(operation.decode, ring);
          break;
        default:
          Combine(operation);
      }
      ptx::WaitForChunks();
      if (i + 1 < launch_.n_instructions) all.Wait();
      ReadClock(i + 1);
    }
    all.Leave();
  }

  __device__ void ReadClock(int i) {
    if (launch_.clocks == nullptr || blockIdx.x > 0 || threadIdx.x > 0) return;
    launch_.clocks[i] = ptx::GlobalNanoseconds();
  }

  // Into shared memory, where it is after WaitForChunks and a barrier: by the first warp.
  __device__ void FetchOperation(int i) {
    constexpr int kChunks = sizeof(StepOperation) / 16;
    static_assert(sizeof(StepOperation) % 16 == 0);
    if (warp_ != 0) return;
    const auto* from = reinterpret_cast<const unsigned char*>(&launch_.program[i].operation);
    const uint32_t to = ptx::SharedAddress(&own_.operations[i & 1]);
    for (int c = lane_; c < kChunks; c += 32) {
      ptx::CopyChunk(to + c * 16, from + c * 16);
    }
  }

  __device__ void FetchPlan(const DecodeParams& p) {
    const int thread = threadIdx.x;
    if (thread == 0) own_.block = p.plan.blocks[blockIdx.x];
    ptx::NamedBarrier(GridBarrier<kThreads>::kBarrier, kThreads);
    const DecodeSegment& first = own_.block.first;
    if (own_.block.begin < own_.block.end && first.n_pages > 0) {
      const int half = p.rotary_dim / 2;
      const int64_t angle = static_cast<int64_t>(first.position) * half;
      if (thread < half) own_.cos[thread] = p.cos[angle + thread], own_.sin[thread] = p.sin[angle + thread];
      if (thread == 0) own_.last_page = p.page_ids[first.page_offset + first.n_pages - 1];
    }
    ptx::NamedBarrier(GridBarrier<kThreads>::kBarrier, kThreads);
    has_plan_ = true;
  }

  __device__ void Attend(const DecodeParams& p, ItemReader& ring) {
    if (!has_plan_) FetchPlan(p);
    const DecodeBlock* block = &own_.block;
    const SegmentPlan first{own_.cos, own_.sin, &own_.last_page};
    if (warp_ < p.head_tiles * T::kTokenGroups) {
      Consume<T>(p, shared_, block, &first, ring, warp_, lane_);
    } else {  // passes the stages on
      for (int s = block->begin; s < block->end; ++s) {
        for (int i = 0; i < 2 * p.plan.segments[s].n_pages; ++i) ring.Next(p.stage_bytes);
      }
    }
    ring.Release();
  }

  // An item a block where there are few, else a warp.
  __device__ void Combine(const StepOperation& operation) {
    const CombineParams& p = operation.combine;
    const int n_items = p.n_heads * operation.n_sequences;
    if (n_items <= static_cast<int>(gridDim.x)) {
      if (static_cast<int>(blockIdx.x) >= n_items) return;
      auto& shared = *reinterpret_cast<typename BlockCombiner::Shared*>(shared_.merge());
      if (!has_sequence_) {
        if (threadIdx.x == 0) own_.sequence = p.sequences[blockIdx.x / p.n_heads];
        ptx::NamedBarrier(kConsumerBarrier, kThreads);
        has_sequence_ = true;
      }
      BlockCombiner::Run(p, own_.sequence, blockIdx.x % p.n_heads, warp_ * 32 + lane_, shared,
                         [] { ptx::NamedBarrier(kConsumerBarrier, kThreads); });
      return;
    }
    auto& shared = reinterpret_cast<typename WarpCombiner::Shared*>(shared_.merge())[warp_];
    for (int item = warp_ * gridDim.x + blockIdx.x; item < n_items; item += kWarps * gridDim.x) {
      WarpCombiner::Run(p, p.sequences[item / p.n_heads], item % p.n_heads, lane_, shared,
                        [] { __syncwarp(); });
    }
  }

  const StepLaunch& launch_;
  const BlockShared<T> shared_;
  Shared& own_;
  const int warp_, lane_;
  bool has_plan_ = false, has_sequence_ = false;
};

template <class T, int kRowTiles>
__global__ void __launch_bounds__(T::kMaxThreads, 1) RunStep(const __grid_constant__ StepLaunch launch) {
#if T6_PTX_HAS_SM90
  using Block = StepBlock<T, kRowTiles>;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  __shared__ typename Block::Shared own;
  Block(launch, shared_memory, own).Run();
#endif
}

template <class T>
StepInstance MakeStepInstance() {
  return {T::kRank,
          T::kDim,
          T::kWarpTokens,
          T::kMaxThreads,
          {reinterpret_cast<const void*>(&RunStep<T, 1>), reinterpret_cast<const void*>(&RunStep<T, 2>)}};
}

template <int kRank>
std::span<const StepInstance> MakeStepInstances() {
  static const std::array kInstances = {MakeStepInstance<DecodeTraits<kRank, 64, 16, 13>>(),
                                        MakeStepInstance<DecodeTraits<kRank, 64, 32, 11>>()};
  return kInstances;
}

}  // namespace t6::cuda
