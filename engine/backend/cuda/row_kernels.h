// Operations on rows around the products: embedding, norms, SwiGLU, rounding, and the step's page copies.
// Launches return before the work is done; the caller owns all memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine/backend/params.h"

namespace t6::cuda {

// The residual stream as the few-row products read it: its rows in bfloat16, not normalised (a norm without
// weight is a factor of the row, which commutes with the product), and sums of squares in pieces.
struct RowStats {
  void* rows = nullptr;      // bf16 [n_rows][stride], zero behind the width
  int stride = 0;            // elements
  float* squares = nullptr;  // [n_rows][n_pieces]
  int n_pieces = 0;
};

// out[row] = table[ids[row]]; an id of -1 - k is sampled[k]. With stats.rows also those.
struct EmbedCall {
  const void* table = nullptr;  // [vocab, width] of dtype
  DType dtype = DType::kF32;
  int width = 0;
  const int32_t* ids = nullptr;      // [n_rows]; null: row i is the table's row i
  const int32_t* sampled = nullptr;  // tokens of the step before
  int n_rows = 0;
  float* out = nullptr;  // [n_rows, width], or null
  RowStats stats;
};
cudaError_t LaunchEmbed(const EmbedCall& call, cudaStream_t stream);

// out[row] = norm(in[row_index[row]]), zeros behind k.
struct NormRowsCall {
  const void* in = nullptr;  // rows of in_dtype (kF32 or kBF16)
  DType in_dtype = DType::kF32;
  int64_t in_stride = 0;
  const int32_t* row_index = nullptr;  // [n_rows] or null
  int n_rows = 0;
  int k = 0;
  RmsNorm norm;
  void* out = nullptr;  // [n_rows, out_stride] of out_dtype
  DType out_dtype = DType::kF32;
  int out_stride = 0;  // at least k
};
cudaError_t LaunchNormRows(const NormRowsCall& call, cudaStream_t stream);

// out = silu(gate) * up, all of `dtype`.
struct SwiGluCall {
  const void* gate_up = nullptr;  // [n_rows, 2 * width]: gate, then up
  DType dtype = DType::kF32;
  int n_rows = 0;
  int width = 0;        // a multiple of 8
  void* out = nullptr;  // [n_rows, width]
};
cudaError_t LaunchSwiGlu(const SwiGluCall& call, cudaStream_t stream);

// One page's layout, as its parts' runs of tokens: see PageLayout.
struct PageParts {
  static constexpr int kMaxParts = 8;
  struct Part {
    int64_t offset, bytes;
    int row_bytes, rows_per_rank, element_bytes;
    bool token_minor;
  };
  Part parts[kMaxParts];
  int n_parts = 0;
  int64_t page_bytes = 0;
};
// The step's copies in every layer, then its clears.
struct CopyPagesCall {
  uint8_t* base = nullptr;  // [n_layers][n_pages][page_bytes]
  PageParts layout;
  int n_layers = 0;
  int64_t n_pages = 0;
  const PageCopy* copies = nullptr;  // [n_copies] in device memory
  int n_copies = 0;
  const int32_t* clears = nullptr;  // [n_clears] in device memory
  int n_clears = 0;
};
cudaError_t LaunchCopyPages(const CopyPagesCall& call, cudaStream_t stream);

// Widens or rounds `n_rows` rows of `k` numbers into rows of `out_stride`, zeros behind k.
struct PackRowsCall {
  const void* in = nullptr;
  DType in_dtype = DType::kF32;
  int64_t n_rows = 0;
  int k = 0;
  void* out = nullptr;
  DType out_dtype = DType::kF32;
  int out_stride = 0;
};
cudaError_t LaunchPackRows(const PackRowsCall& call, cudaStream_t stream);

}  // namespace t6::cuda
