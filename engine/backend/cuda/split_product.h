// Products of 5 to 64 rows with bfloat16 weights: bound by the bytes of the weights, and by the input rows,
// which every tile of output columns reads once more. A cluster of blocks shares the k of a tile, so that
// all multiprocessors stream weights; its blocks add their sums through each other's shared memory, in a
// fixed order. Blocks ask for their first weights before the kernel in front is done. Hopper only.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/backend/cuda/skinny.h"

namespace t6::cuda {

inline constexpr int kMaxSplitRows = 64;
// From here on faster than skinny.h, and than a step as one kernel (step_program.h).
inline constexpr int kMinSplitRows = 5;

// How a product is divided among blocks.
struct SplitShape {
  int tile_columns = 64;  // weight rows of a block, 64 or 128; of SwiGLU half are gate's and half up's
  int n_splits = 1;       // of k: blocks of a cluster, at most kMostSplits and the chunks of k
  static constexpr int kMostSplits = 8;

  // Whether it is faster than cuBLASLt: not where tiles are several for each multiprocessor, as a head's.
  static bool Suits(int n_weights, int n_sms) { return n_weights <= 2 * 128 * n_sms; }
  // For `n_weights` weight rows of `k` numbers, on a chip of n_sms multiprocessors.
  static SplitShape Make(int n_weights, int k, int n_sms);
};

// As SkinnyCall says, but: n_rows up to kMaxSplitRows, no row_index, k_stride a multiple of 64, and weights
// whose rows (of gate and of up, for SwiGLU) are padded to 64.
cudaError_t LaunchSplitProduct(const SkinnyCall& call, const SplitShape& shape, cudaStream_t stream);

// RowStats::n_pieces of rows `width` wide.
inline constexpr int kSplitPieceColumns = 32;
constexpr int SplitPieces(int width) { return (width + kSplitPieceColumns - 1) / kSplitPieceColumns; }

}  // namespace t6::cuda
