// FlashTPA decode: one query row per sequence against factor pages in bfloat16 or fp8 (docs/kernels.md).
// Launches return before the work is done and take CUDA's own error type, so that .cu files need no Abseil;
// the caller owns all memory. For R_K = R_V, and what DecodeAttentionConfig::Make accepts.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "engine/backend/cuda/attention_output.h"
#include "engine/backend/cuda/decode_plan.h"

namespace t6::cuda {

struct DecodeShape {
  int n_heads = 0;
  int head_dim = 0;
  int rank = 0;    // R_K = R_V
  int rank_q = 0;  // 0: full query
  int rotary_dim = 0;
  float logit_scale = 0.0f;  // AttentionSpec::logit_scale()
  bool head_norm = false;
  float head_norm_eps = 0.0f;
  bool fp8 = false;  // pages, with scales; else bfloat16

  int q_elements() const { return rank_q == 0 ? n_heads * head_dim : rank_q * (n_heads + head_dim); }
  int qkv_elements() const { return q_elements() + 2 * rank * (n_heads + head_dim); }
  // Rows of 128 bytes of a page's key half; the value half has as many.
  int half_rows() const {
    if (!fp8) return rank * (64 * head_dim + 64 * n_heads) / 64;
    return (rank * 64 * head_dim + 127) / 128 + (rank * 64 * n_heads + 127) / 128 + rank * 64 * 4 / 128;
  }
  size_t page_bytes() const { return static_cast<size_t>(half_rows()) * 2 * 128; }
};

// What a layout depends on of the device.
struct DecodeDevice {
  int n_sms = 0;
  int max_shared_per_sm = 0;  // bytes
  // The kernels without tensor maps and dependent launches: what other chips than Hopper from sm_80 on get.
  bool portable = false;

  // Of the current device; cudaErrorNotSupported below sm_80.
  static cudaError_t Query(DecodeDevice* device);
};

// How a kernel call is laid out on the device: which instance, how many warps, stages and blocks.
struct DecodeAttentionConfig {
  DecodeShape shape;
  bool portable = false;
  const void* kernel = nullptr;
  bool combines_beside = false;  // leaves room for a block of the combine
  int warp_tokens = 0;           // of a page that one warp attends to
  int head_tiles = 0;            // of 16 heads
  int token_groups = 0;          // 64 / warp_tokens
  int n_threads = 0;             // consumers and the producer warp
  int stage_bytes = 0;
  int n_stages = 0;
  int first_in_flight = 0, max_in_flight = 0;  // halves of pages
  int exchange_bytes = 0;                      // of shared_bytes, behind the stages
  int shared_bytes = 0;
  int n_blocks = 0;  // one a multiprocessor

  int n_consumers() const { return n_threads - 32; }
  // Nothing when there is no kernel for this shape on this device.
  static std::optional<DecodeAttentionConfig> Make(const DecodeShape& shape, const DecodeDevice& device);
};

// The part of a block's shared memory behind the stages, of any kernel with this head_dim and so many
// consumer warps.
int ExchangeBytes(int head_dim, int n_warps);

// The tensor maps of one layer's pages: a half of a page is copied as boxes of 256 rows and one of the rest.
struct PageMaps {
  CUtensorMap whole;
  CUtensorMap rest;
};
// 128-byte aligned pages; fails where the driver cannot describe them.
cudaError_t MakePageMaps(const DecodeShape& shape, const void* pages, int64_t n_pages, PageMaps* maps);

// Partial results, one a segment.
struct DecodePartials {
  float* out = nullptr;  // [max_segments][h][d], of weights 2^(logit - max)
  float2* max_sum =
      nullptr;  // [max_segments][h]: the greatest logit in powers of two, the sum of the weights
};

struct DecodeCall {
  const DecodeAttentionConfig* config = nullptr;
  void* pages = nullptr;           // of the layer
  const PageMaps* maps = nullptr;  // the same as tensor maps; not needed by portable kernels
  DecodePlan plan;
  const int32_t* page_ids = nullptr;
  const float* qkv = nullptr;  // [n_rows][qkv_elements]
  int qkv_stride = 0;          // elements between its rows; 0: as wide as a row
  const float* cos = nullptr;  // [max_positions][rotary_dim / 2]
  const float* sin = nullptr;
  const float* head_norm_weight = nullptr;  // [d] when head_norm
  DecodePartials partials;
  AttentionOutput out;  // [n_rows][h * d]
  int max_sequences = 0;
  // Write the new tokens' factors into their pages too, of bfloat16; the caller's store leaves them out.
  bool stores = false;
  // Start before the kernel in front has finished, and load pages that it does not write. Only where the
  // plan, the page table and all pages but each sequence's newest (with `stores`, all pages) were complete
  // before an ordinary launch in front of it.
  bool overlaps_prior = false;
};

cudaError_t LaunchDecodePlan(const StepSequences& step, const DecodePlan& plan, cudaStream_t stream);
cudaError_t LaunchDecodeAttention(const DecodeCall& call, cudaStream_t stream);

}  // namespace t6::cuda
