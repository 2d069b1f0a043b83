// How a product of few rows is divided: columns among blocks and tiles, k into stages. Plain numbers, made by
// the host, so that no block divides.
#pragma once

#include <algorithm>

#include "engine/backend/cuda/skinny.h"

#ifdef __CUDACC__
#define T6_BOTH __host__ __device__
#else
#define T6_BOTH
#endif

namespace t6::cuda {

// Chunks of a row that a warp may have where rows are few (few_rows_product.cuh).
inline constexpr int kFewRows = 2, kFewRowsChunks = 24;

struct ProductShape {
  static constexpr int kTile = 16;   // weight rows of a stage: SwiGLU has gate's, then as many of up's
  static constexpr int kChunk = 32;  // of k: 16 bytes of each of four lanes
  static constexpr int kTileLog2 = 4, kChunkLog2 = 5;
  int n_blocks = 0;        // that have columns
  int each = 0, more = 0;  // a block's columns; the first `more` blocks have one more
  int columns = 0;         // of a tile: kTile, or with SwiGLU half as many
  int chunks = 0, n_stages = 0, stage_chunks = 0;

  static ProductShape Make(const SkinnyCall& call, int n_sms, int n_warps) {
    ProductShape shape;
    shape.n_blocks = std::min(n_sms, (call.n + kSkinnyColumns - 1) / kSkinnyColumns);
    shape.each = call.n / shape.n_blocks, shape.more = call.n % shape.n_blocks;
    shape.columns = call.epilogue == Epilogue::kSwiGlu ? kTile / 2 : kTile;
    shape.chunks = call.k_stride / kChunk;
    const int most = n_warps * ProductChunks(n_warps);
    shape.n_stages = (shape.chunks + most - 1) / most;
    // Even, so that no line of 128 bytes is asked for twice.
    shape.stage_chunks = (shape.chunks + 2 * shape.n_stages - 1) / (2 * shape.n_stages) * 2;
    return shape;
  }

  // FewRowsProduct writes a residual's tile with as many threads as write several tiles elsewhere: of a block
  // with two tiles they would take each other's sums.
  bool TakesFewRows(int n_warps, Epilogue epilogue) const {
    const bool is_one_tile = each + (more > 0 ? 1 : 0) <= columns;
    return n_stages * ProductChunks(n_warps) <= kFewRowsChunks && (epilogue != Epilogue::kAdd || is_one_tile);
  }

  T6_BOTH int Begin(int block) const {
    if (block >= n_blocks) return 0;
    return block * each + (block < more ? block : more);
  }
  T6_BOTH int End(int block) const {
    return block < n_blocks ? Begin(block) + each + (block < more ? 1 : 0) : 0;
  }
  T6_BOTH int columns_log2() const { return columns == kTile ? kTileLog2 : kTileLog2 - 1; }
  T6_BOTH int ChunksOf(int stage) const {
    return stage + 1 < n_stages ? stage_chunks : chunks - stage * stage_chunks;
  }
  // An odd number of 64 bytes: eight lanes that read together meet all banks.
  T6_BOTH int pitch() const { return (stage_chunks | 1) * kChunk * 2; }
  // Of a stage with `n` of the tile's columns.
  T6_BOTH int bytes(int n) const { return (columns == kTile ? n : columns + n) * pitch(); }
};

// Where a product of a step's program finds and leaves what blocks hand to each other (exchange.cuh).
struct ProductLinks {
  bool awaits = false;  // the input rows, and their squares, appear while the kernel runs
  // Besides the call's own places, or null: rows of `stride` numbers, float32 for kStore, else bfloat16, and
  // for kAdd as many squares as the call's.
  void* rows = nullptr;
  int stride = 0;
  float* squares = nullptr;
};

}  // namespace t6::cuda
