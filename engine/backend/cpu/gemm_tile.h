// The innermost product: a few rows times one block of 64 packed columns. Which kernels there are, and which
// is best here.
//
// Packing (oneDNN calls it BA16a64b and BA16a64b2a): columns (output features) in blocks of kBlockColumns,
// each block contiguous over all of k:  float32 [k_padded][64],  bfloat16 [k_padded / 2][64][2], that is
// pairs of k interleaved. Missing columns and missing k are zeros, so kernels know no tails.
//
// Every kernel here sums a row's products over k in one fixed order, whatever rows stand beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/tensor/dtype.h"

namespace t6::cpu {

inline constexpr int kBlockColumns = 64;
inline constexpr int kDepthStep = 32;  // k is padded to a multiple of this
// Rows of `a` and `c` reach to the next multiple of this, for oneDNN's sake; what lies there is nobody's.
inline constexpr int kRowStep = 32;

// c = a b^T for adjacent blocks: c[r][0 .. 64 n_blocks), r < n_rows, is overwritten. All of c's n_rows
// rounded up to kRowStep may be.
struct BlockProduct {
  const void* a = nullptr;  // [n_rows, a_stride] float, or bf16 for bf16 weights; zero from k to k_padded
  size_t a_stride = 0;      // elements
  int n_rows = 0;
  const void* b = nullptr;        // packed blocks, one behind the other
  int n_blocks = 1;               // no more than the kernel's BlocksAtOnce
  int n_columns = kBlockColumns;  // of a single block that are wanted; the others of c may hold anything
  const void* next = nullptr;     // as many bytes as a block's, to be asked for meanwhile, or null
  int k_padded = 0;
  float* c = nullptr;
  size_t c_stride = 0;
};
using BlockKernel = void (*)(const BlockProduct& product);

// The best kernels of this CPU. One for all numbers of rows, so that a row's bits do not depend on how many
// there are.
struct BlockKernels {
  BlockKernel f32 = nullptr;
  BlockKernel bf16 = nullptr;
  // Blocks that the bf16 kernel reads side by side, so that a few rows have enough sums to hide the latency
  // of a product. Null: one.
  int (*bf16_blocks_at_once)(int n_rows) = nullptr;
  std::string isa;  // "AVX-512 bf16"
};
BlockKernels ChooseBlockKernels();

// gemm_rows.cc: Highway, whatever vectors there are; bf16 weights are widened by shifts.
void RowsF32(const BlockProduct& product);
void RowsBf16(const BlockProduct& product);

// gemm_x86.cc: the instructions that Highway 1.0 does not know. Call only where the CPU and the system have
// them.
bool HasAvx512Bf16();
bool HasAmxBf16();  // also asks Linux for the permission to use the tiles, once
void RowsAvx512Bf16(const BlockProduct& product);
int BlocksAtOnceAvx512Bf16(int n_rows);
void RowsAmxBf16(const BlockProduct& product);

}  // namespace t6::cpu
