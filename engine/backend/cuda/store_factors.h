// Writes the key and value factors of a step's new tokens into pages of bfloat16, B_K rotated: one token of
// each sequence in decode, whole chunks in prefill.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/backend/cuda/decode_attention.h"

namespace t6::cuda {

struct StoreCall {
  DecodeShape shape;
  void* pages = nullptr;
  const float* qkv = nullptr;          // [n_rows][qkv_elements]
  const int32_t* positions = nullptr;  // [n_rows]
  const int32_t* slots = nullptr;      // [n_rows] page id * 64 + offset; no two alike
  const float* cos = nullptr;          // [max_positions][rotary_dim / 2]
  const float* sin = nullptr;
  int n_rows = 0;
};

// On a programmatic edge: reads nothing before the kernel in front is done.
cudaError_t LaunchStoreFactors(const StoreCall& call, cudaStream_t stream);

}  // namespace t6::cuda
