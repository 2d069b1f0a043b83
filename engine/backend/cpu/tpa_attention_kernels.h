// The innermost operations of attention on the CPU, one table of functions for each instruction set.
// All of them work on one page (64 tokens) of one layer, padded: dp is head_dim rounded up to 32, with zeros.
//
// "Operand" is the type that products multiply: float32, or bfloat16 where the CPU has instructions for it.
// The right side of a product is packed: float32 [k][n], bfloat16 [k / 2][n][2], that is pairs of k
// interleaved (VNNI). Sums are float32 everywhere, and a row's sum never depends on the rows beside it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/backend/attention_spec.h"
#include "engine/tensor/dtype.h"

namespace t6::cpu {

// Rows of the left side and of the result are read and written in groups of this many (AMX tiles).
inline constexpr int kRowGroup = 16;

// A page that a worker will read next. Kernels that know it ask for its lines a few at a time between their
// products: asked for in one go they would fill the core's miss buffers, and everything behind would wait, or
// be dropped (Zen 4 drops prefetches beyond some 25 GB/s).
struct PageFetch {
  alignas(64) static constexpr uint8_t kNothing[64] = {};
  const uint8_t* at = kNothing;
  const uint8_t* end = kNothing;

  template <int n>
  void Lines() {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      __builtin_prefetch(at, 0, 2);
      at += at < end ? 64 : 0;
    }
  }
};

// c[m][n] (+)= a[m][k] b[k][n]. n and k are multiples of 32 (k of gemm_f32: any).
struct GemmArgs {
  const void* a = nullptr;  // operand [m up to kRowGroup][lda]
  int lda = 0;
  const void* b = nullptr;  // operand, packed, ldb columns
  int ldb = 0;
  float* c = nullptr;  // [m up to kRowGroup][ldc]
  int ldc = 0;
  int m = 0, n = 0, k = 0;
  bool accumulate = false;
  PageFetch* fetch = nullptr;
};

// out[i] = sum_q a[i][q] vectors[i][q]: one head's query of many rows.
struct MixArgs {
  const float* a = nullptr;
  size_t a_stride = 0;
  const float* vectors = nullptr;  // row i's at i * vector_stride: [rank][dp]
  size_t vector_stride = 0;
  int rank = 0;
  int n = 0;
  int dp = 0;
  float* out = nullptr;  // [n][dp]
};

// out[v] = scale * rotated in[v], at one position; columns from d on are zeros.
struct RotateArgs {
  const float* in = nullptr;  // [n][d]
  int n = 0;
  int d = 0, dp = 0, half = 0;  // half of rotary_dim
  const float* cos = nullptr;   // [half]
  const float* sin = nullptr;
  float scale = 1.0f;
  float* out = nullptr;  // [n][dp]
};

// logits[i][j][t] = sum_r A_K[r][j][t] S_r[i][j][t] for query row i and head j. S_r is in `products` as it
// is, or, when the query stays factored, S_r[i][j] = sum_q A_Q[i][j][q] products[r][i * rank_q + q].
struct ScoreArgs {
  const void* ak = nullptr;  // page [rank_k][n_heads][64]
  int rank_k = 0;
  int n_heads = 0;
  int n_rows = 0;
  const float* products = nullptr;  // [rank_k][product_rows][64]
  int product_rows = 0;
  const float* aq = nullptr;  // [n_rows][aq_stride], the first n_heads * rank_q of each; null: not factored
  size_t aq_stride = 0;
  int rank_q = 0;
  int n_tokens = 64;        // 32 or 64: of the page's first ones; other columns may hold anything
  float* logits = nullptr;  // [n_rows * n_heads][64]
  PageFetch* fetch = nullptr;
};

// One page of online softmax, base 2: logits become weights (0 from visible on); max, sum and out follow.
struct SoftmaxArgs {
  float* logits = nullptr;       // [n][64]
  const int* visible = nullptr;  // [n] tokens of this page that the row attends to; <= 0: none
  int n = 0;
  int n_tokens = 0;      // columns to write, a multiple of 32; others may hold anything
  float* max = nullptr;  // [n]
  float* sum = nullptr;  // [n]
  float* out = nullptr;  // [n][dp]
  int dp = 0;
};

// weights[i][u * 64 + t] = p[i][t] A_V[u][i mod n_heads][t], 0 from visible on.
struct WeighArgs {
  const float* p = nullptr;  // [n][64]
  const int* visible = nullptr;
  int n = 0;
  const void* av = nullptr;  // page [rank_v][n_heads][64]
  int rank_v = 0;
  int n_heads = 0;
  float* weights = nullptr;  // [n][rank_v * 64]
};

// One head's keys or values: out[t] = sum_r A[r][head][t] B[r][t], zeros from `valid` on.
struct ExpandArgs {
  const void* a = nullptr;  // page [rank][n_heads][64]
  const void* b = nullptr;  // page or padded copy [rank][64][dp]
  int rank = 0;
  int n_heads = 0;
  int head = 0;
  int dp = 0;
  int valid = 0;
  float* out = nullptr;  // [64][dp]
};

// Rows of 64 numbers of an fp8 page as bfloat16, times the scales of their columns; exact.
struct WidenArgs {
  const uint8_t* in = nullptr;    // [rows][64]
  const float* scales = nullptr;  // [64], or null: 1
  int rows = 0;
  bf16* out = nullptr;  // [rows][64]
};

// One head's scores and online softmax of a page. weights[i][t] = p[i][t], operands, zeros from visible on.
struct HeadWeightsArgs {
  const void* queries = nullptr;  // operand, row i's [dp] at i * query_stride
  size_t query_stride = 0;        // elements
  const void* keys = nullptr;     // packed [dp][64]
  int dp = 0;
  int n = 0;                     // rows
  int n_tokens = 64;             // 32 or 64: of the page's first ones, which is what rows see at most
  const int* visible = nullptr;  // [n]
  float* max = nullptr;          // row i's at i * stat_stride
  float* sum = nullptr;
  size_t stat_stride = 1;
  float* out = nullptr;  // row i's [dp] at i * out_stride
  size_t out_stride = 0;
  void* weights = nullptr;  // [n][64]
  PageFetch* fetch = nullptr;
};

// Merges partials by log-sum-exp in their order, divides by the sum, applies subln, writes.
struct FinishArgs {
  float* parts = nullptr;  // part s, entry e at s * part_stride + e * dp; the first is overwritten
  size_t part_stride = 0;
  const float* max = nullptr;  // part s, entry e at s * stat_stride + e
  const float* sum = nullptr;
  size_t stat_stride = 0;
  int n_parts = 0;
  int n = 0;  // entries
  int d = 0, dp = 0;
  float scale = 1.0f;                  // 1 / R_V
  const float* norm_weight = nullptr;  // [d], or null
  float norm_eps = 0.0f;
  void* out = nullptr;  // entry e at e * out_stride, of out_dtype: kF32 or kBF16
  DType out_dtype = DType::kF32;
  size_t out_stride = 0;
};

struct AttentionKernels {
  std::string_view name;  // "AVX2"
  DType page = DType::kF32;
  DType compute = DType::kF32;
  bool cheap_products = false;  // a matrix unit: forming Q pays, arithmetic on vectors is what costs
  bool fetches = false;         // gemm, gemm_rows and score mind `fetch`

  // Around a task: the matrix unit's state. May be null.
  void (*enter)() = nullptr;
  void (*leave)() = nullptr;

  void (*gemm)(const GemmArgs& args) = nullptr;
  void (*gemm_f32)(const GemmArgs& args) = nullptr;
  // The same with b as rows [k][ldb] of a page, where that is faster than packing them for one group of rows;
  // or null.
  void (*gemm_rows)(const GemmArgs& args) = nullptr;
  void (*mix)(const MixArgs& args) = nullptr;
  void (*rotate)(const RotateArgs& args) = nullptr;
  // Rows [64][dp] of a page -> operand keys [dp][64] and values [64][dp]; the result is `buffer` or the rows
  // themselves.
  // Of the keys' columns the first n_tokens, 32 or 64, are wanted.
  const void* (*pack_keys)(const void* rows, int dp, int n_tokens, void* buffer) = nullptr;
  const void* (*pack_values)(const void* rows, int dp, void* buffer) = nullptr;
  // The same from expanded float rows.
  const void* (*pack_float_keys)(const float* rows, int dp, void* buffer) = nullptr;
  const void* (*pack_float_values)(const float* rows, int dp, void* buffer) = nullptr;
  // n floats (a multiple of 32) -> operand; the result is `buffer` or the floats themselves.
  const void* (*round)(const float* in, size_t n, void* buffer) = nullptr;

  void (*score)(const ScoreArgs& args) = nullptr;
  void (*softmax)(const SoftmaxArgs& args) = nullptr;
  void (*weigh)(const WeighArgs& args) = nullptr;
  // Softmax, Weigh and rounding in one, where that is faster, or null; `weights` are operands
  // [n][rank_v * 64], and logits are not changed.
  void (*softmax_weights)(const SoftmaxArgs& softmax, const WeighArgs& weigh, void* weights) = nullptr;
  void (*expand)(const ExpandArgs& args) = nullptr;
  // Many rows on a page, head by head, or null. Rows [rank][64][dp] of a page, finite everywhere, ->
  // `paired`, [rank rounded up to 2][64][dp] operands, once for all heads; then with e.a, e.head and e.valid
  // the packed right sides of one head or two, [n_heads][dp][64] and [n_heads][64][dp].
  void (*pair_keys)(const void* rows, int rank, int dp, void* paired) = nullptr;
  void (*pair_values)(const void* rows, int rank, int dp, void* paired) = nullptr;
  void (*head_keys)(const ExpandArgs& args, int n_heads, const void* paired, void* out) = nullptr;
  void (*head_values)(const ExpandArgs& args, int n_heads, const void* paired, void* out) = nullptr;
  void (*head_weights)(const HeadWeightsArgs& args) = nullptr;
  void (*finish)(const FinishArgs& args) = nullptr;
  void (*widen_fp8)(const WidenArgs& args) = nullptr;
};

// The best table for pages of this type, kF32 or kBF16, on this CPU. fp8 pages are read as bfloat16.
const AttentionKernels& BestAttentionKernels(DType page);
// Every table that this CPU can run, best first: for tests.
std::vector<AttentionKernels> AllAttentionKernels(DType page);

}  // namespace t6::cpu
