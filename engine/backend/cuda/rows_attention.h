// Attention of few query rows on long contexts, and of rows that share pages (docs/prefill_kernels.md): one
// launch for each width of query blocks, then a combine of partial results. Launches return before the work
// is done and take CUDA's own error type; the caller owns all memory.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/rows_plan.h"

namespace t6::cuda {

// What the rows kernel reads besides the tensor maps.
struct RowsParams {
  const RowsTask* tasks;       // of this width
  const int32_t* block_begin;  // [n_blocks + 1]
  const int32_t* page_ids;
  const void* queries;  // [h][query_rows][64] bfloat16
  int n_heads;
  int half_rows;            // rows of 128 bytes of half a page
  int query_rows;           // rows of one head in the queries
  DecodePartials partials;  // a row and head's numbers in the order of PlaceInPartial (rows_params.cuh)
  void* out;                // [n_rows][h * d]
  bool out_is_bf16;
  bool combine_follows;  // and may get ready while pages are attended to
};

struct RowsMaps {
  CUtensorMap factors;  // pages as rows of 128 bytes, boxes of B's rows
  CUtensorMap heads;    // the same, boxes of a task's heads, not swizzled: warps read one row at a time
};

// A compiled kernel.
struct RowsInstance {
  int rank, head_dim, width;
  int block_heads;  // heads of a block
  int cluster;      // blocks that share their pages' B, each with heads of its own
  int n_threads;
  int shared_bytes;
  const void* kernel;
};
std::span<const RowsInstance> RowsInstancesOfRank1();
std::span<const RowsInstance> RowsInstancesOfRank2();
std::span<const RowsInstance> RowsInstancesOfRank3();
std::span<const RowsInstance> RowsInstancesOfRank4();
// Null where there is none.
const RowsInstance* FindRowsInstance(int rank, int head_dim, int width);

cudaError_t MakeRowsPageMaps(const RowsInstance& instance, const DecodeShape& shape, const void* pages,
                             int64_t n_pages, RowsMaps* maps);
cudaError_t LaunchRows(const RowsInstance& instance, const RowsParams& params, const RowsMaps& maps,
                       int n_blocks, cudaStream_t stream);

struct RowsCombineCall {
  const RowsMerge* merges = nullptr;  // [n_merges]
  int n_merges = 0;
  int n_heads = 0, rank = 0;                // d = 64
  const float* head_norm_weight = nullptr;  // [d], or null: no norm
  float head_norm_eps = 0.0f;
  DecodePartials partials;
  void* out = nullptr;
  bool out_is_bf16 = false;
};
cudaError_t LaunchRowsCombine(const RowsCombineCall& call, cudaStream_t stream);

}  // namespace t6::cuda
