// Attention over bfloat16 factor pages, and fp8 ones of 64 wide heads, for sequences of several query rows,
// and for rows of any sequences that share pages: long chunks by the prefill kernel, everything else by the
// rows kernel (docs/prefill_kernels.md). For R_K = R_V in 1..4, contextual factors and head_dim 32, 64 or
// 128. fp8 pages have the prefill kernel alone, for chunks of any length and steps whose tokens fit the
// scratch.
#pragma once

#include <cstddef>
#include <memory>

#include "engine/backend/cuda/attention_path.h"

namespace t6::cuda {

struct MultiRowOptions {
  // Chunks of at least so many rows go to the prefill kernel, where it has their head_dim; 0: none does.
  // And more than a block has, where their context is not much longer than they are.
  int min_prefill_rows = 256;
  bool stores = true;          // Run stores the step's factors where it can, with the queries
  bool always_shares = false;  // rows on the same pages attend together even where that takes longer
  size_t scratch_bytes = size_t{160} << 20;  // for expanded keys and values; more if one head needs it
};

// For the current device.
StatusOr<std::unique_ptr<AttentionPath>> MakeMultiRowAttention(const MultiRowOptions& options);

}  // namespace t6::cuda
