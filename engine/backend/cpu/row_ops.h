// Operations on rows of floats around the products: norms, rounding, epilogues. Vectors by Highway, one
// thread each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backend/params.h"

namespace t6::cpu {

// out[0..k) = norm(in), out[k..k_padded) = 0. The sum of squares is in float32, in an order that k alone
// decides.
void PrepareRow(const float* in, int k, int k_padded, const RmsNorm& norm, float* out);
// The same, rounded to bfloat16.
void PrepareRow(const float* in, int k, int k_padded, const RmsNorm& norm, bf16* out);

// out (+)= c, n_columns of each row; swiglu: out = silu(c) * c_up. What is not added may be rounded to
// bfloat16.
struct TileEpilogue {
  Epilogue kind = Epilogue::kStore;
  const float* c = nullptr;  // [n_rows, c_stride]; gate for kSwiGlu
  const float* c_up = nullptr;
  size_t c_stride = 0;
  int n_rows = 0;
  int n_columns = 0;
  void* out = nullptr;
  DType out_dtype = DType::kF32;
  size_t out_stride = 0;
};
void FinishTile(const TileEpilogue& tile);

// Widens `n` bfloat16 numbers.
void WidenRow(const bf16* in, int n, float* out);

}  // namespace t6::cpu
