// What the attention benchmark needs besides the kernel that it measures: random pages, a kernel that only
// reads, and the same attention in float64.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine/backend/cuda/decode_attention.h"

namespace t6::bench {

// Standard normal numbers, each a function of its index and the seed.
void FillNormalBf16(void* to, size_t n, uint32_t seed, cudaStream_t stream);
// Whole pages of a shape in fp8, scales included.
void FillFp8Pages(void* to, const t6::cuda::DecodeShape& shape, size_t n_pages, uint32_t seed,
                  cudaStream_t stream);
void FillNormal(float* to, size_t n, uint32_t seed, cudaStream_t stream);
// cos and sin of random angles.
void FillAngles(float* cos, float* sin, size_t n, uint32_t seed, cudaStream_t stream);

// Reads all bytes (a multiple of 16) and writes none.
void ReadOnly(const void* bytes, size_t n, int n_sms, float* never_written, cudaStream_t stream);

// Attention of one sequence in float64: out [h][d].
struct ReferenceCall {
  t6::cuda::DecodeShape shape;
  const void* pages;
  const int32_t* page_ids;  // of this sequence
  const float* qkv;         // of this row
  const float* cos;         // at its position
  const float* sin;
  int length;
  double* out;
};
void Reference(const ReferenceCall& call, cudaStream_t stream);

}  // namespace t6::bench
