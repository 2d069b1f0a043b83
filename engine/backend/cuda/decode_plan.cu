#include <cub/block/block_scan.cuh>

#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/base/page_tokens.h"

namespace t6::cuda {
namespace {

constexpr int kPlanThreads = 1024;
// What a segment costs besides its pages, in pages: the query, the merge of the token groups, the partial.
constexpr int kSegmentPages = 1;

// Of a sequence that is decoded here; 0 for the others.
__device__ int Pages(const StepSequences& step, int s) {
  const bool decodes = step.row_begin[s + 1] - step.row_begin[s] == 1;
  return decodes ? (step.context_len[s] + kPageTokens - 1) / kPageTokens : 0;
}

// The same, for the walks over all sequences: those of the first sequences lie in shared memory.
class AllPages {
 public:
  __device__ AllPages(const StepSequences& step, int n_sequences) : step_(step) {
    __shared__ int cached[kPlanThreads];
    const int s = static_cast<int>(threadIdx.x);
    if (s < n_sequences) cached[s] = Pages(step, s);
    cached_ = cached;
    __syncthreads();
  }
  __device__ int operator[](int s) const { return s < kPlanThreads ? cached_[s] : Pages(step_, s); }

 private:
  const StepSequences& step_;
  const int* cached_;
};

__device__ DecodeSegment MakeSegment(const StepSequences& step, int s, int first_page, int end_page) {
  const int n_pages = Pages(step, s), length = step.context_len[s];
  DecodeSegment segment;
  segment.page_offset = step.page_begin[s] + first_page;
  segment.n_pages = end_page - first_page;
  segment.holds_newest = end_page == n_pages;
  segment.last_tokens = segment.holds_newest ? length - (n_pages - 1) * kPageTokens : kPageTokens;
  segment.sequence = s;
  segment.row = step.row_begin[s];
  segment.position = length - 1;
  segment.is_whole = segment.n_pages == n_pages;
  return segment;
}

__device__ void WriteBlock(const StepSequences& step, const DecodePlan& plan, int b, int begin, int end) {
  DecodeBlock block{};
  block.begin = begin, block.end = end;
  block.first = plan.segments[begin];
  for (int i = 0; i < min(block.first.n_pages, DecodeBlock::kFirstPages); ++i) {
    block.first_pages[i] = step.page_ids[block.first.page_offset + i];
  }
  plan.blocks[b] = block;
}

// --- shares as equal as possible

// Deals sequences in order: a block takes pages until its share, each segment's own cost included, is full,
// and none of the next sequence where not even one page of it would fit.
struct Dealer {
  int share;
  int block = 0, used = 0;  // the block that is being filled, and how much of its share is

  // The blocks [first, last] that get a sequence's pages, the first of them `first_pages`.
  struct Place {
    int first, last, first_pages;
  };
  __device__ Place Deal(int pages) {
    if (pages == 0) return {block, block, 0};
    if (share - used <= kSegmentPages) ++block, used = 0;
    Place place{block, block, min(pages, share - used - kSegmentPages)};
    const int left = pages - place.first_pages, each = share - kSegmentPages;
    if (left == 0) {
      used += place.first_pages + kSegmentPages;
    } else {
      block += (left + each - 1) / each;
      used = (left - 1) % each + 1 + kSegmentPages;
    }
    place.last = block;
    return place;
  }
};

// The smallest share with which n_blocks are enough: of those that are worth trying, a thread tries one each.
__device__ int FindShare(const AllPages& pages, int n_sequences, int n_blocks) {
  __shared__ int total, best;
  if (threadIdx.x == 0) total = 0, best = INT32_MAX;
  __syncthreads();
  int own = 0;
  for (int s = threadIdx.x; s < n_sequences; s += kPlanThreads) own += pages[s];
  if (own > 0) atomicAdd(&total, own);
  __syncthreads();
  const int least = (total + n_blocks - 1) / n_blocks + kSegmentPages;
  // A block's share is used but for kSegmentPages, so this much more is always enough.
  const int n_shares = 2 + kSegmentPages * (2 + (n_sequences + n_blocks - 1) / n_blocks);
  for (int i = threadIdx.x; i < n_shares; i += kPlanThreads) {
    Dealer dealer{least + i};
    for (int s = 0; s < n_sequences; ++s) dealer.Deal(pages[s]);
    if (dealer.block < n_blocks) atomicMin(&best, least + i);
  }
  __syncthreads();
  return best;
}

// Segment indices are block + sequence: without gaps within a sequence, and no two alike.
__device__ void PlanShares(const StepSequences& step, const DecodePlan& plan, int n_sequences) {
  const AllPages pages(step, n_sequences);
  const int share = FindShare(pages, n_sequences, plan.n_blocks);
  if (threadIdx.x == 0) {
    Dealer dealer{share};
    for (int s = 0; s < n_sequences; ++s) {
      const Dealer::Place place = dealer.Deal(pages[s]);
      plan.sequences[s] = {place.first + s, pages[s] == 0 ? 0 : place.last - place.first + 1,
                           step.row_begin[s], place.first_pages};
    }
  }
  __syncthreads();
  const auto first_block = [&](int s) { return plan.sequences[s].first_segment - s; };
  const auto last_block = [&](int s) { return first_block(s) + max(plan.sequences[s].n_segments, 1) - 1; };

  for (int b = threadIdx.x; b < plan.n_blocks; b += kPlanThreads) {
    int low = 0, high = n_sequences;  // the first sequence that does not end before this block
    while (low < high) {
      const int middle = (low + high) / 2;
      if (last_block(middle) < b) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    int s = low;
    for (; s < n_sequences && first_block(s) <= b; ++s) {
      const DecodeSequence sequence = plan.sequences[s];
      const int n_pages = pages[s], before = b - first_block(s);
      const int begin = before == 0 ? 0 : sequence.first_pages + (before - 1) * (share - kSegmentPages);
      const int end = before == 0 ? sequence.first_pages : min(n_pages, begin + share - kSegmentPages);
      plan.segments[b + s] = MakeSegment(step, s, begin, end);
    }
    if (s == low) {
      plan.blocks[b] = {};
    } else {
      WriteBlock(step, plan, b, b + low, b + s);
    }
  }
}

// --- fixed splits

// unit_begin = prefix sums of the sequences' units of unit_pages; returns the total.
__device__ int CountUnits(const StepSequences& step, int n_sequences, int unit_pages, int32_t* unit_begin) {
  using Scan = cub::BlockScan<int, kPlanThreads>;
  __shared__ typename Scan::TempStorage storage;
  int total = 0;
  for (int base = 0; base < n_sequences; base += kPlanThreads) {
    const int s = base + static_cast<int>(threadIdx.x);
    const int units = s < n_sequences ? (Pages(step, s) + unit_pages - 1) / unit_pages : 0;
    int before, sum;
    Scan(storage).ExclusiveSum(units, before, sum);
    if (s < n_sequences) unit_begin[s] = total + before;
    total += sum;
    __syncthreads();
  }
  if (threadIdx.x == 0) unit_begin[n_sequences] = total;
  __syncthreads();
  return total;
}

// The last sequence that begins at or before `unit`: sequences without units are passed over.
__device__ int SequenceOf(const int32_t* unit_begin, int n_sequences, int unit) {
  int low = 0, high = n_sequences - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (unit_begin[middle] <= unit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Every unit is a segment, with the unit's index.
__device__ void PlanFixedSplits(const StepSequences& step, const DecodePlan& plan, int n_sequences) {
  const int unit_pages = plan.fixed_split_pages;
  const int64_t n_units = CountUnits(step, n_sequences, unit_pages, plan.unit_begin);
  for (int s = threadIdx.x; s < n_sequences; s += kPlanThreads) {
    const int begin = plan.unit_begin[s];
    plan.sequences[s] = {begin, plan.unit_begin[s + 1] - begin, step.row_begin[s], 0};
  }
  for (int b = threadIdx.x; b < plan.n_blocks; b += kPlanThreads) {
    const int begin = static_cast<int>(b * n_units / plan.n_blocks);
    const int end = static_cast<int>((b + 1) * n_units / plan.n_blocks);
    if (begin == end) {
      plan.blocks[b] = {};
      continue;
    }
    int s = SequenceOf(plan.unit_begin, n_sequences, begin);
    for (int unit = begin; unit < end; ++unit) {
      while (plan.unit_begin[s + 1] <= unit) ++s;
      const int first_page = (unit - plan.unit_begin[s]) * unit_pages;
      plan.segments[unit] = MakeSegment(step, s, first_page, min(first_page + unit_pages, Pages(step, s)));
    }
    WriteBlock(step, plan, b, begin, end);
  }
}

__global__ void __launch_bounds__(kPlanThreads) MakeDecodePlan(StepSequences step, DecodePlan plan) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const int n_sequences = min(*step.n_sequences, step.max_sequences);
  for (int s = n_sequences + threadIdx.x; s < step.max_sequences; s += kPlanThreads) {
    plan.sequences[s] = {0, 0, 0, 0};
  }
  if (plan.fixed_split_pages > 0) {
    PlanFixedSplits(step, plan, n_sequences);
  } else {
    PlanShares(step, plan, n_sequences);
  }
}

}  // namespace

cudaError_t LaunchDecodePlan(const StepSequences& step, const DecodePlan& plan, cudaStream_t stream) {
  return LaunchOverlapped(&MakeDecodePlan, dim3(1), kPlanThreads, 0, stream, step, plan);
}

}  // namespace t6::cuda
