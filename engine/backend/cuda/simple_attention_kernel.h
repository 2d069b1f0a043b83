// The kernel of simple_attention.h: plain structs of device pointers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/backend/cuda/attention_output.h"

namespace t6::cuda {

inline constexpr int kMaxSimpleHeadDim = 256;

struct SimpleAttentionCall {
  // The step (AttentionStep).
  const int32_t* n_sequences = nullptr;
  const int32_t* n_rows = nullptr;
  const int32_t* row_begin = nullptr;
  const int32_t* page_begin = nullptr;
  const int32_t* page_ids = nullptr;
  const int32_t* positions = nullptr;
  int row_capacity = 0;
  int min_rows = 1;
  // The spec.
  int n_heads = 0, head_dim = 0, rank_q = 0, rank_k = 0, rank_v = 0, rotary_dim = 0, qkv_stride = 0;
  float logit_scale = 0.0f;
  // The layer.
  const uint8_t* pages = nullptr;
  enum class Pages : uint8_t { kF32, kBf16, kFp8 } type = Pages::kBf16;
  int64_t page_bytes = 0, bk = 0, ak = 0, bv = 0, av = 0;  // bytes from a page's first
  int64_t sk = 0, sv = 0;                                  // of fp8 pages
  const float* qkv = nullptr;
  const float* cos = nullptr;
  const float* sin = nullptr;
  const float* head_norm_weight = nullptr;  // [d], or null
  float head_norm_eps = 0.0f;
  AttentionOutput out;
};
cudaError_t LaunchSimpleAttention(const SimpleAttentionCall& call, cudaStream_t stream);

}  // namespace t6::cuda
