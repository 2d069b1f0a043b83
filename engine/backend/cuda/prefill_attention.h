// Attention of long chunks on Hopper (docs/prefill_kernels.md): queries formed once and keys and values
// expanded once, in bfloat16, then an ordinary causal flash attention over them with warpgroup products.
// Launches return before the work is done and take CUDA's own error type; the caller owns all memory. For d
// = 64.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/rows_plan.h"

namespace t6::cuda {

inline constexpr int kPrefillTileRows = 192;  // query rows of a tile
inline constexpr int kPrefillBlockTokens =
    128;  // tokens of a step; sequences begin at its multiples in scratch
inline constexpr int kMaxPrefillPasses = 128;  // a pass has at least one head
inline constexpr int kMaxQueryRank = 32;

// What a step's rows become: queries of every row, rotated, with log2(e) and every factor of the logits;
// where there are `pages`, also their key and value factors in the pages (bfloat16), and keys and values in
// scratch.
struct QueryCall {
  DecodeShape shape;
  const float* qkv = nullptr;          // [n_rows][qkv_elements]
  int qkv_stride = 0;                  // elements between its rows; 0: as wide as a row
  const int32_t* positions = nullptr;  // [n_rows]
  const float* cos = nullptr;          // [max_positions][rotary_dim / 2]
  const float* sin = nullptr;
  void* queries = nullptr;  // [h][query_rows][d] bfloat16
  int n_rows = 0, query_rows = 0;
  int32_t* counters = nullptr;  // [kMaxPrefillPasses] set to 0
  // Null: nothing is stored. Not with R_Q 0.
  void* pages = nullptr;
  const int32_t* slots = nullptr;  // [n_rows] page id * 64 + offset; -1: no row
  // [n_rows + n_zeros] each row's token in scratch, or -1; behind them, tokens that become zeros. Or null.
  const int32_t* scratch_tokens = nullptr;
  int n_zeros = 0;
  int n_heads = 0;  // whose keys and values are wanted, from head 0 on
  int n_scratch_tokens = 0;
  void* keys = nullptr;    // [n_heads][n_scratch_tokens][d] bfloat16
  void* values = nullptr;  // the same
};
cudaError_t LaunchQueries(const QueryCall& call, cudaStream_t stream);

// Keys and values of the listed pages for heads [first_head, first_head + n_heads), times R_K and R_V.
struct ExpandCall {
  DecodeShape shape;
  const void* pages = nullptr;
  const ExpandPage* expands = nullptr;  // [n_expands]
  int n_expands = 0;
  int first_head = 0, n_heads = 0;
  int n_scratch_tokens = 0;
  bool keeps_rest = false;  // a page's tokens from its n_tokens on are others' to write, not zeros
  void* keys = nullptr;     // [n_heads][n_scratch_tokens][d] bfloat16
  void* values = nullptr;   // the same
};
cudaError_t LaunchExpand(const ExpandCall& call, cudaStream_t stream);

struct PrefillMaps {
  CUtensorMap query;   // [h * query_rows][64], boxes of kPrefillTileRows
  CUtensorMap keys;    // [rows of scratch][64], boxes of kPrefillBlockTokens
  CUtensorMap values;  // the same
};

// One pass: every tile for heads [first_head, first_head + n_heads), keys and values as expanded for them.
struct PrefillParams {
  const PrefillTile* tiles;  // [n_tiles] longest first
  int n_tiles;
  int first_head, n_heads;
  int section_heads;  // heads whose keys and values are meant to stay in L2 together
  int total_heads;    // h
  int query_rows;
  int n_scratch_tokens;
  int32_t* counter;  // 0 at the start
  void* out;         // [n_rows][h * d]
  bool out_is_bf16;
  float rank;                     // R_V
  const float* head_norm_weight;  // [d], or null: no norm
  float head_norm_eps;
};

cudaError_t LaunchPrefill(const PrefillParams& params, const PrefillMaps& maps, int n_sms,
                          cudaStream_t stream);

}  // namespace t6::cuda
