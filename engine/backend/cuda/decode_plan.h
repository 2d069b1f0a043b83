// Who reads which pages in one step's decode attention: made on the device from the step's sequences, so that
// one captured graph with a fixed grid serves every length. Plain structs of device pointers; nothing here
// owns memory.
//
// Blocks get pages in the sequences' order, shares as small as all pages allow; a share ends with a sequence
// where little of the next would fit. A segment is a run of pages of one sequence that one block attends to;
// it yields one partial result, in the slot of its own index. A sequence's segments are consecutive.
#pragma once

#include <cstdint>

namespace t6::cuda {

// 32 bytes, read at once.
struct alignas(16) DecodeSegment {
  int32_t page_offset;  // of its first page in page_ids
  int32_t n_pages;      // 0: nothing to do
  int32_t last_tokens;  // tokens to attend to in its last page; 64 everywhere before
  int32_t sequence;
  int32_t row;           // of the query in the projections and in the output
  int32_t position;      // of the query
  int32_t is_whole;      // 1: the sequence's only segment
  int32_t holds_newest;  // 1: its last page is the one that this step's store writes to
};

struct DecodeSequence {
  int32_t first_segment;
  int32_t n_segments;  // 0: not decoded here (no token, or several rows)
  int32_t row;
  int32_t first_pages;  // pages of the first segment
};

// A block's segments, and what it needs to begin without another look-up.
struct alignas(16) DecodeBlock {
  static constexpr int kFirstPages = 14;
  int32_t begin, end;                // segments
  int32_t first_pages[kFirstPages];  // ids of the first segment's first pages
  DecodeSegment first;
};
static_assert(sizeof(DecodeBlock) == 96);

// A step's sequences, as StepPlan has them, in device memory.
struct StepSequences {
  const int32_t* n_sequences = nullptr;  // [1]
  const int32_t* context_len = nullptr;  // [n_sequences]
  const int32_t* row_begin = nullptr;    // [n_sequences + 1]; sequences with other than one row are left out
  const int32_t* page_begin = nullptr;   // [n_sequences + 1]
  const int32_t* page_ids = nullptr;
  int32_t max_sequences = 0;
};

struct DecodePlan {
  DecodeSegment* segments = nullptr;    // [max_segments]
  DecodeSequence* sequences = nullptr;  // [max_sequences]
  DecodeBlock* blocks = nullptr;        // [n_blocks]
  int32_t* unit_begin = nullptr;        // [max_sequences + 1] scratch of fixed splits
  int32_t n_blocks = 0;
  // 0: shares as equal as possible, the fastest. Else shares never cut between multiples of this many pages
  // of a sequence, so that a sequence's partial results, and with them every bit of its output, do not depend
  // on the batch.
  int32_t fixed_split_pages = 0;
};

// Segments that a plan can have: the sizes of DecodePlan::segments and of the partial results.
inline int64_t MaxSegments(int n_blocks, int max_sequences, int64_t max_total_pages, int fixed_split_pages) {
  if (fixed_split_pages == 0) return n_blocks + max_sequences;
  return max_total_pages / fixed_split_pages + max_sequences;
}

}  // namespace t6::cuda
