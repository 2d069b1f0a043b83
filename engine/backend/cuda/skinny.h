// Products of few rows with bfloat16 weights: bound by the bytes of the weights, which stream through shared
// memory and the tensor cores once. A decode step's products. A block asks for its first stages of weights
// before the kernel in front is done, so that memory does not rest between kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine/backend/cuda/row_kernels.h"
#include "engine/backend/params.h"

namespace t6::cuda {

inline constexpr int kMaxSkinnyRows = 8;

// Chunks of k that each of a product's warps has of a stage (product.cuh): all warps have as many.
constexpr int ProductChunks(int n_warps) { return n_warps > 10 ? 2 : 3; }
constexpr int LargestProductItem(int n_warps) { return 16 * (n_warps * ProductChunks(n_warps) | 1) * 64; }

// Output columns of a block, unless all blocks have more.
inline constexpr int kSkinnyColumns = 8;

struct SkinnyCall {
  const void* weight = nullptr;  // bf16 [n padded to 64, k_stride], zero behind n and k
  int n = 0;                     // output columns
  int up_row = 0;                // kSwiGlu: the first row of up; gate's is 0
  int k = 0;                     // numbers to read of an input row, a multiple of 8, at most k_stride
  int k_stride = 0;              // a multiple of 32
  const void* in = nullptr;      // bf16 rows, 16-byte aligned
  int in_stride = 0;
  const int32_t* row_index = nullptr;  // [n_rows] rows of `in` (and of `squares`), or null
  int n_rows = 0;                      // at most kMaxSkinnyRows
  // Null: no norm. Else [.][n_pieces] sums of squares of a row, whose mean over norm_width is wanted.
  const float* squares = nullptr;
  int n_pieces = 0;
  int norm_width = 0;
  float norm_eps = 0.0f;
  Epilogue epilogue = Epilogue::kStore;
  void* out = nullptr;  // float32 [n_rows][out_stride]; kSwiGlu: bf16
  int out_stride = 0;
  RowStats stats;  // kAdd: of the rows written
  // Null, or in a step's program: the least key (sampling_key.cuh) of each row's first n_best outputs, 0
  // where one of all is not finite.
  uint64_t* best = nullptr;  // [n_rows], all ones before
  int n_best = 0;
};
cudaError_t LaunchSkinny(const SkinnyCall& call, int n_sms, cudaStream_t stream);

// RowStats::n_pieces of rows `width` wide: one for each block.
int SkinnyPieces(int width, int n_sms);

}  // namespace t6::cuda
