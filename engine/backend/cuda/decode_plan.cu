#include <cub/block/block_scan.cuh>

#include "engine/backend/cuda/decode_attention.h"
#include "engine/base/page_tokens.h"

namespace t6::cuda {
namespace {

constexpr int kPlanThreads = 1024;

__device__ int Pages(const StepSequences& step, int s) {
  const bool decodes = step.row_begin[s + 1] - step.row_begin[s] == 1;
  return decodes ? (step.context_len[s] + kPageTokens - 1) / kPageTokens : 0;
}

// unit_begin = prefix sums of the sequences' units; returns the total.
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

// How units are dealt: block b has units [b n / blocks, (b + 1) n / blocks).
struct Shares {
  int64_t n_units, n_blocks;
  __device__ int Begin(int block) const { return static_cast<int>(block * n_units / n_blocks); }
  __device__ int BlockOf(int64_t unit) const {
    return static_cast<int>(((unit + 1) * n_blocks - 1) / n_units);
  }
};

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

__global__ void __launch_bounds__(kPlanThreads) MakeDecodePlan(StepSequences step, DecodePlan plan) {
  const int n_sequences = min(*step.n_sequences, step.max_sequences);
  const bool fixed = plan.fixed_split_pages > 0;
  const int unit_pages = fixed ? plan.fixed_split_pages : 1;
  const int n_units = CountUnits(step, n_sequences, unit_pages, plan.unit_begin);
  const Shares shares{n_units, min(plan.n_blocks, n_units)};

  for (int s = threadIdx.x; s < step.max_sequences; s += kPlanThreads) {
    DecodeSequence sequence{0, 0, 0, 0};
    if (s < n_sequences) {
      const int begin = plan.unit_begin[s], end = plan.unit_begin[s + 1];
      if (end > begin) {
        const int first = shares.BlockOf(begin), last = shares.BlockOf(end - 1);
        sequence = fixed ? DecodeSequence{begin, end - begin, step.row_begin[s], 0}
                         : DecodeSequence{first + s, last - first + 1, step.row_begin[s], 0};
      }
    }
    plan.sequences[s] = sequence;
  }

  for (int b = threadIdx.x; b < plan.n_blocks; b += kPlanThreads) {
    if (b >= shares.n_blocks) {
      plan.blocks[b] = {};
      continue;
    }
    const int begin = shares.Begin(b), end = shares.Begin(b + 1);
    int s = SequenceOf(plan.unit_begin, n_sequences, begin);
    const int first_segment = fixed ? begin : b + s;
    int segment = first_segment;
    for (int unit = begin; unit < end; ++segment) {
      if (fixed) {
        while (plan.unit_begin[s + 1] <= unit) ++s;
      }
      const int sequence_begin = plan.unit_begin[s];
      const int next = fixed ? unit + 1 : min(end, plan.unit_begin[s + 1]);
      plan.segments[segment] = MakeSegment(step, s, (unit - sequence_begin) * unit_pages,
                                           min((next - sequence_begin) * unit_pages, Pages(step, s)));
      unit = next;
      if (!fixed)
        ++s;  // a sequence without units gets a segment without pages: indices stay block + sequence
    }
    DecodeBlock block{};
    block.begin = first_segment, block.end = segment;
    const DecodeSegment first = plan.segments[first_segment];
    block.page_offset = first.page_offset, block.n_pages = first.n_pages,
    block.holds_newest = first.holds_newest;
    for (int i = 0; i < min(first.n_pages, DecodeBlock::kFirstPages); ++i) {
      block.first_pages[i] = step.page_ids[first.page_offset + i];
    }
    plan.blocks[b] = block;
  }
}

}  // namespace

cudaError_t LaunchDecodePlan(const StepSequences& step, const DecodePlan& plan, cudaStream_t stream) {
  MakeDecodePlan<<<1, kPlanThreads, 0, stream>>>(step, plan);
  return cudaGetLastError();
}

}  // namespace t6::cuda
