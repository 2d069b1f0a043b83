// Writes the key and value factors of a step's new tokens into pages of any type, B_K rotated: one
// token of each sequence in decode, whole chunks in prefill. For every rank and head_dim.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace t6::cuda {

struct StoreCall {
  int n_heads = 0, head_dim = 0, rotary_dim = 0;
  int rank_k = 0, rank_v = 0;
  int q_elements = 0;  // of qkv's row before A_K
  // The page: PageLayout's offsets, in bytes.
  enum class Pages : uint8_t { kF32, kBf16, kFp8 } type = Pages::kBf16;
  int64_t page_bytes = 0, bk = 0, ak = 0, bv = 0, av = 0;
  int64_t sk = 0, sv = 0;  // of fp8 pages
  void* pages = nullptr;
  const float* qkv = nullptr;          // [n_rows][q_elements + (rank_k + rank_v)(h + d)]
  int qkv_stride = 0;                  // elements between its rows; 0: as wide as a row
  const int32_t* positions = nullptr;  // [n_rows]
  const int32_t* slots = nullptr;      // [n_rows] page id * 64 + offset, no two alike; -1: no row
  const float* cos = nullptr;          // [max_positions][rotary_dim / 2]
  const float* sin = nullptr;
  int n_rows = 0;
  // Launched on a programmatic edge, it starts before the kernel in front is done, but reads nothing of it
  // before.
  bool overlaps_prior = true;
};

cudaError_t LaunchStoreFactors(const StoreCall& call, cudaStream_t stream);

}  // namespace t6::cuda
