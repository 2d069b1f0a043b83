// The kernel that runs a step's program. One block a multiprocessor, all resident. A producer warp walks the
// program ahead of the others and keeps the ring full: weights and pages depend on nothing that the step
// computes, since the block that attends to a sequence's newest page puts the new token into its own copy.
// The consumer warps do an instruction, then the next: what it needs of other blocks it waits for itself,
// number by number (exchange.cuh). A last warp clears what has been used.
#pragma once

#include "engine/backend/cuda/decode_kernel.cuh"
#include "engine/backend/cuda/few_rows_product.cuh"
#include "engine/backend/cuda/item_ring.cuh"
#include "engine/backend/cuda/product.cuh"
#include "engine/backend/cuda/step_combine.cuh"
#include "engine/backend/cuda/step_instances.h"

namespace t6::cuda {

static_assert(kItemSlots == kMaxStages, "the ring's barriers lie where decode's do");

// A meeting of all blocks at a counter in global memory. One thread of each calls it; the last of a launch
// sets the count back.
class Meeting {
 public:
  __device__ explicit Meeting(uint32_t* count) : count_(count) {}

  __device__ void Wait() {
    target_ += gridDim.x;
    ptx::AddRelease(count_, 1);
    while (ptx::LoadAcquire(count_) < target_) {
    }
  }
  __device__ void Leave() {
    if (atomicAdd(count_, 1) == target_ + gridDim.x - 1) *count_ = 0;
  }

 private:
  uint32_t* count_;
  uint32_t target_ = 0;
};

// kRows: kFewRows or kMaxSkinnyRows, the most of a step.
template <class T, int kRows>
class StepBlock {
 public:
  static constexpr int kWarps = T::kMaxThreads / 32 - 1, kThreads = kWarps * 32;
  // For few tiles of heads: more warps that have fewer tokens each.
  using Narrow = DecodeTraits<T::kRank, T::kDim, 16, T::kMaxThreads / 32>;
  static constexpr int kBlockBarrier = 3, kAttendedBarrier = 4, kClearedBarrier = 5, kHalfBarrier = 6;  // 2
  static constexpr int kMostShared = 3;  // tiles of heads of a block that shares segments, at most
  using Products = std::conditional_t<kRows == kFewRows, FewRowsProduct<kWarps>, Product<kWarps>>;
  using BlockCombiner = StepCombiner<T::kDim, kThreads>;
  using HalfCombiner = StepCombiner<T::kDim, kThreads / 2>;
  using WarpCombiner = StepCombiner<T::kDim, 32>;
  static_assert(sizeof(typename Products::Shared) <= kWarps * Exchange<T>::kWarpBytes);
  static_assert(sizeof(typename BlockCombiner::Shared) <= kWarps * Exchange<T>::kWarpBytes);
  static_assert(2 * sizeof(typename HalfCombiner::Shared) <= kWarps * Exchange<T>::kWarpBytes);
  static_assert(kWarps * sizeof(typename WarpCombiner::Shared) <= kWarps * Exchange<T>::kWarpBytes);

  struct Shared {  // besides the ring and the exchange
    alignas(16) StepOperation operations[2];
    uint32_t begins[kItemSlots];
    // Of the step's plan, the same in every layer.
    DecodeBlock block;
    float cos[T::kDim / 2], sin[T::kDim / 2];
    int32_t last_page;
    DecodeSequence sequences[2];  // whose results the block merges, or its halves
    bool merges_by_halves;
    HeadTiles tiles;
    int n_heads;
    int n_rows;  // that exist
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
    if (warp_ > kWarps) {
      Keep();
    } else if (produces) {
      ItemWriter ring(shared_.ring_address, launch_.ring_bytes, barriers, own_.begins);
      for (int i = 0; i < launch_.n_instructions; ++i) Produce(launch_.program[i], ring);
    } else {
      ItemReader ring(launch_.ring_bytes, barriers, lane_);
      ConsumeAll(ring);
    }
  }

 private:
  // Whose segments the block attends to, and with which heads: where the plan leaves most blocks without any,
  // several share one's, each with some of the heads.
  struct Share {
    bool is_known = false;
    int block = -1;  // of the plan; -1: nothing to do
    HeadTiles tiles{};
  };

  // Of a consumer thread, as the compiler cannot know it before an operation begins: or it would form what
  // follows from it for all operations beforehand, and keep that in registers.
  struct Place {
    int warp, lane;
    __device__ Place() {
      uint32_t thread = threadIdx.x;
      ptx::Opaque(thread);
      warp = static_cast<int>(thread / 32), lane = static_cast<int>(thread % 32);
    }
  };

  __device__ void Produce(const StepInstruction& instruction, ItemWriter& ring) {
    const StepOperation& operation = instruction.operation;
    if (operation.kind == StepOperation::kProduct) FillProduct(operation.product, operation.shape, ring);
    if (operation.kind != StepOperation::kAttend) return;
    const DecodeParams p = operation.decode;  // a copy: see FillProduct
    if (!share_.is_known) {
      ptx::WaitForPriorKernels();  // one of them makes the step's plan
      share_ = FindShare(p, blockIdx.x);
    }
    if (share_.block < 0) return;
    const TensorMapCopier copier(p, &instruction.maps.whole, &instruction.maps.rest);
    Producer<T, TensorMapCopier, ItemWriter>(p, copier, ring, lane_).Run(p.plan.blocks + share_.block);
    ring.Agree();
  }

  // The warp that sees when all blocks have attended, and so have used whatever was handed over before; then
  // it clears this block's part of it. Nobody waits for that but the next attention.
  __device__ void Keep() {
    Meeting all(launch_.counts + kKeeperCount);
    for (int i = 0; i < launch_.n_meetings; ++i) {
      ptx::NamedBarrier(kAttendedBarrier, kThreads + 32);
      if (lane_ == 0) all.Wait();
      __syncwarp();
      ClearOwn(i % kStepSpaces, lane_, 32);
      __syncwarp();
      if (i + 1 < launch_.n_meetings) ptx::NamedBarrierArrive(kClearedBarrier, kThreads + 32);
    }
    if (lane_ == 0) all.Leave();
  }
  // This block's part of a space, and its segments' partials there.
  __device__ void ClearOwn(int space, int thread, int n_threads) const {
    Clear(launch_.places[space], launch_.n_places, blockIdx.x * n_threads + thread, gridDim.x * n_threads);
    const DecodePartials& partials = launch_.partials[space];
    for (int s = own_.block.begin; s < own_.block.end; ++s) {
      const int64_t first = static_cast<int64_t>(s) * own_.n_heads + own_.tiles.first * kTileHeads;
      const int n = min(own_.tiles.count * kTileHeads, own_.n_heads - own_.tiles.first * kTileHeads);
      auto* outs = reinterpret_cast<uint4*>(partials.out + first * T::kDim);
      Clear(outs, n * T::kDim / 4, thread, n_threads);
      for (int i = thread; i < n; i += n_threads) {
        partials.max_sum[first + i] = make_float2(__uint_as_float(kAbsent), __uint_as_float(kAbsent));
      }
    }
  }

  __device__ void MeetBlock() { ptx::NamedBarrier(kBlockBarrier, kThreads); }

  __device__ void ConsumeAll(ItemReader& ring) {
    Meeting all(launch_.counts);
    const auto meet_all = [&] {
      MeetBlock();
      if (threadIdx.x == 0) all.Wait();
      MeetBlock();
    };
    FetchOperation(0);
    ptx::WaitForPriorKernels();  // those that plan and embed; the producer does not wait with weights
    FetchPlan();
    for (int i = 0; i < kStepSpaces; ++i) ClearOwn(i, threadIdx.x, kThreads);
    ptx::WaitForChunks();
    meet_all();
    ReadClock(0);
    for (int i = 0; i < launch_.n_instructions; ++i) {
      const StepOperation& operation = own_.operations[i & 1];
      const auto fetch_next = [&] {
        if (i + 1 < launch_.n_instructions) FetchOperation(i + 1);
      };
      switch (operation.kind) {
        case StepOperation::kProduct:
          RunProduct(operation, ring, fetch_next);
          break;
        case StepOperation::kAttend:
          fetch_next();
          if (i > launch_.first_attention) ptx::NamedBarrier(kClearedBarrier, kThreads + 32);
          Attend(operation, ring);
          ptx::NamedBarrierArrive(kAttendedBarrier, kThreads + 32);
          break;
        default:
          fetch_next();
          Combine(operation);
      }
      ptx::WaitForChunks();
      if (operation.meets) {
        meet_all();
      } else {
        MeetBlock();
      }
      ReadClock(i + 1);
    }
    if (threadIdx.x == 0) all.Leave();
  }

  template <typename Meanwhile>
  __device__ void RunProduct(const StepOperation& operation, ItemReader& ring, Meanwhile meanwhile) {
    const SkinnyCall& call = operation.product;
    const int n_rows = call.row_index != nullptr ? call.n_rows : min(call.n_rows, own_.n_rows);
    auto& shared = *reinterpret_cast<typename Products::Shared*>(shared_.merge());
    const Place place;
    Products(call, operation.shape, operation.links, n_rows, shared, place.warp, place.lane)
        .Run(ring, shared_.ring_address, meanwhile);
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

  __device__ Share FindShare(const DecodeParams& p, int index) const {
    const int n_blocks = gridDim.x;
    // Tiles of a part, and parts. Blocks have segments from the first on, without gaps.
    int each = p.head_tiles, parts = 1;
#pragma unroll
    for (int n = kMostShared; n > 0; --n) {
      const int n_parts = (p.head_tiles + n - 1) / n;
      if (n >= p.head_tiles || p.plan.fixed_split_pages > 0) continue;
      const DecodeBlock& behind = p.plan.blocks[n_blocks / n_parts];
      if (behind.begin == behind.end) each = n, parts = n_parts;
    }
    Share share{true, index / parts};
    if (share.block >= n_blocks / parts) share.block = -1;
    share.tiles.first = index % parts * each;
    share.tiles.count = min(each, p.head_tiles - share.tiles.first);
    return share;
  }

  // Whether two heads a block leave the merge to blocks that have nothing to attend to: the last ones.
  __device__ bool MergesByHalves(const DecodeParams& p) const {
    const int n_items = p.n_heads * launch_.program[launch_.first_attention + 1].operation.n_sequences;
    const int first = static_cast<int>(gridDim.x) - (n_items + 1) / 2;
    if (first < 0) return false;
    const Share share = FindShare(p, first);
    return share.block < 0 || p.plan.blocks[share.block].begin == p.plan.blocks[share.block].end;
  }

  // What the block has of the step's plan, for all layers.
  __device__ void FetchPlan() {
    const int thread = threadIdx.x;
    if (thread == 0) {
      own_.n_rows = *launch_.n_rows, own_.block = DecodeBlock{};
      if (launch_.first_attention >= 0) {
        const DecodeParams& p = launch_.program[launch_.first_attention].operation.decode;
        const Share share = FindShare(p, blockIdx.x);
        if (share.block >= 0) own_.block = p.plan.blocks[share.block];
        own_.tiles = share.tiles, own_.n_heads = p.n_heads;
        own_.merges_by_halves = MergesByHalves(p);
      }
    }
    MeetBlock();
    const DecodeSegment& first = own_.block.first;
    if (own_.block.begin == own_.block.end || first.n_pages == 0) return;
    const DecodeParams& p = launch_.program[launch_.first_attention].operation.decode;
    const int half = p.rotary_dim / 2;
    const int64_t angle = static_cast<int64_t>(first.position) * half;
    if (thread < half) own_.cos[thread] = p.cos[angle + thread], own_.sin[thread] = p.sin[angle + thread];
    if (thread == 0) own_.last_page = p.page_ids[first.page_offset + first.n_pages - 1];
  }

  __device__ void Attend(const StepOperation& operation, ItemReader& ring) {
    const DecodeParams& p = operation.decode;
    if (own_.block.begin == own_.block.end) return;
    if (own_.tiles.count * Narrow::kTokenGroups <= kWarps) {
      AttendAs<Narrow>(p, ring);
    } else {
      AttendAs<T>(p, ring);
    }
  }
  template <class Traits>
  __device__ void AttendAs(const DecodeParams& p, ItemReader& ring) {
    const Place place;
    if (place.warp < own_.tiles.count * Traits::kTokenGroups) {
      const BlockShared<Traits> shared(shared_.ring, launch_.ring_bytes);
      const SegmentPlan first{own_.cos, own_.sin, &own_.last_page};
      Consume<Traits, true>(p, own_.tiles, shared, &own_.block, &first, ring, place.warp, place.lane);
    } else {  // passes the stages on
      for (int s = own_.block.begin; s < own_.block.end; ++s) {
        for (int i = 0; i < 2 * p.plan.segments[s].n_pages; ++i) ring.Next(p.stage_bytes);
      }
    }
    ring.Release();
  }

  // An item half a block or a block where there are few, from the last block on, which has the least to
  // attend to; else a warp.
  __device__ void Combine(const StepOperation& operation) {
    const CombineParams& p = operation.combine;
    const Place place;
    const int n_items = p.n_heads * operation.n_sequences;
    if (own_.merges_by_halves) {
      constexpr int kHalf = kWarps / 2;
      static_assert(kWarps % 2 == 0);
      const int half = place.warp / kHalf, thread = place.warp % kHalf * 32 + place.lane;
      auto& shared = reinterpret_cast<typename HalfCombiner::Shared*>(shared_.merge())[half];
      CombineOne<HalfCombiner>(p, n_items, 2, half, thread, shared,
                               [half] { ptx::NamedBarrier(kHalfBarrier + half, kThreads / 2); });
      return;
    }
    if (n_items <= static_cast<int>(gridDim.x)) {
      auto& shared = *reinterpret_cast<typename BlockCombiner::Shared*>(shared_.merge());
      CombineOne<BlockCombiner>(p, n_items, 1, 0, place.warp * 32 + place.lane, shared,
                                [] { ptx::NamedBarrier(kConsumerBarrier, kThreads); });
      return;
    }
    auto& shared = reinterpret_cast<typename WarpCombiner::Shared*>(shared_.merge())[place.warp];
    for (int item = place.warp * gridDim.x + blockIdx.x; item < n_items; item += kWarps * gridDim.x) {
      WarpCombiner::Run(p, p.sequences[item / p.n_heads], item % p.n_heads, place.lane, shared,
                        [] { __syncwarp(); });
    }
  }

  // By the `part`-th of n_parts of the block's threads.
  template <class Combiner, typename Sync>
  __device__ void CombineOne(const CombineParams& p, int n_items, int n_parts, int part, int thread,
                             typename Combiner::Shared& shared, Sync sync) {
    const int item = static_cast<int>(gridDim.x - 1 - blockIdx.x) * n_parts + part;
    if (item >= n_items) return;
    if (!has_sequence_) {
      if (thread == 0) own_.sequences[part] = p.sequences[item / p.n_heads];
      sync();
      has_sequence_ = true;
    }
    Combiner::Run(p, own_.sequences[part], item % p.n_heads, thread, shared, sync);
  }

  const StepLaunch& launch_;
  const BlockShared<T> shared_;
  Shared& own_;
  const int warp_, lane_;
  Share share_;  // as the producer knows it
  bool has_sequence_ = false;
};

template <class T, int kRows>
__global__ void __launch_bounds__(T::kMaxThreads + 32, 1) RunStep(const __grid_constant__ StepLaunch launch) {
#if T6_PTX_HAS_SM90
  using Block = StepBlock<T, kRows>;
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
          T::kMaxThreads / 32 - 1,
          {reinterpret_cast<const void*>(&RunStep<T, 2>), reinterpret_cast<const void*>(&RunStep<T, 8>)}};
}

template <int kRank>
std::span<const StepInstance> MakeStepInstances() {
  static const std::array kInstances = {MakeStepInstance<DecodeTraits<kRank, 64, 16, 13>>(),
                                        MakeStepInstance<DecodeTraits<kRank, 64, 32, 11>>()};
  return kInstances;
}

}  // namespace t6::cuda
