// One step's work as flat arrays, reused from step to step: what the scheduler decided and every device can
// read. Depends on nothing above base, so that backends, the model and the scheduler's tests share it.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/token_output.h"

namespace t6 {

// How one output row is sampled or scored. Draws are Philox keyed by (seed, output_index): the same on every
// device, in every batch, after preemption and restart.
struct SamplingRow {
  float temperature = 1.0f;  // 0: greedy; ties go to the lowest id
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0: all
  uint64_t seed = 0;
  int32_t output_index = 0;  // index of the output token within its request
  int32_t score_token =
      -1;  // >= 0: no draw; the log-probability of this token is wanted (prompt log-probabilities)
  int32_t n_top = -1;  // -1: no log-probability wanted; else also the n_top most likely tokens, 0..20
};

struct PageCopy {
  int32_t source;  // held until the step has completed
  int32_t destination;
  int32_t valid_tokens;  // tokens 0..valid-1 are copied; the rest of the destination is zeroed
};

// Sequences first_sequence .. +n_sequences-1 of the plan share their first n_pages pages.
struct SharedPrefix {
  int32_t first_sequence;
  int32_t n_sequences;
  int32_t n_pages;
};

// token_ids[row] >= 0 is a token id; -1 - k is the token sampled by output row k of the step before (not yet
// on the host).
struct StepPlan {
  // Query tokens, grouped by sequence, ascending position within one.
  std::vector<int32_t> token_ids;  // [n_rows]
  std::vector<int32_t> positions;  // [n_rows]
  std::vector<int32_t> slots;      // [n_rows] page id * kPageTokens + offset: where this token's factors go
  // Sequences.
  std::vector<int32_t> row_begin;  // [n_sequences + 1]
  std::vector<int32_t>
      context_len;  // [n_sequences] tokens attended to by the sequence's last row, itself included
  std::vector<int32_t> page_begin;  // [n_sequences + 1]
  std::vector<int32_t> page_ids;    // [page_begin.back()]
  // Rows whose logits are wanted, and what is done with them.
  std::vector<int32_t> output_rows;   // [n_outputs] row indices, ascending
  std::vector<SamplingRow> sampling;  // [n_outputs]
  // Before any row is computed: pages to copy, then pages to clear (all bytes zero).
  std::vector<PageCopy> copy_pages;
  std::vector<int32_t> clear_pages;
  std::vector<SharedPrefix> shared_prefixes;

  int n_rows() const { return static_cast<int>(token_ids.size()); }
  int n_sequences() const { return static_cast<int>(context_len.size()); }
  int n_outputs() const { return static_cast<int>(output_rows.size()); }
  void Clear() {
    token_ids.clear(), positions.clear(), slots.clear(), context_len.clear(), page_ids.clear();
    row_begin.assign(1, 0), page_begin.assign(1, 0);
    output_rows.clear(), sampling.clear(), copy_pages.clear(), clear_pages.clear(), shared_prefixes.clear();
  }
};

struct StepResult {
  std::vector<TokenOutput> outputs;  // [n_outputs]
};

}  // namespace t6
