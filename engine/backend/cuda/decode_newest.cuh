// The new token of a sequence: its factors go into its page, and into the stage that has the page already.
#pragma once

#include "engine/backend/cuda/decode_params.cuh"

namespace t6::cuda {

// y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos over the two halves of rotary_dim; the rest as it is. Without
// fused multiply-adds, as the other devices round. cos and sin: of the position.
__device__ inline float Rotated(const float* x, int i, int half, const float* cos, const float* sin) {
  if (i >= 2 * half) return x[i];
  if (i < half) return __fadd_rn(__fmul_rn(x[i], cos[i]), __fmul_rn(x[i + half], sin[i]));
  const int j = i - half;
  return __fsub_rn(__fmul_rn(x[i], cos[j]), __fmul_rn(x[j], sin[j]));
}

// What a segment needs of the step's tables.
struct SegmentPlan {
  const float *cos, *sin;    // [rotary_dim / 2] of its position
  const int32_t* last_page;  // its id
};

// Writes the key half (0) or the value half (1) of a segment's newest token, rotated and rounded. `factors`:
// A_K B_K A_V B_V, in shared memory. cos, sin: of its position. Consumer threads call it between the wait for
// the half and its first use, and meet before that use.
template <class T>
__device__ void PutNewest(const DecodeParams& p, const DecodeSegment& segment, const SegmentPlan& plan,
                          int half, const float* factors, unsigned char* stage, int thread, int n_threads) {
  const int h = p.n_heads, column = segment.last_tokens - 1;
  const float* a = factors + half * T::kRank * (h + T::kDim);
  const float* b = a + T::kRank * h;
  auto* to = static_cast<unsigned char*>(p.pages) +
             (static_cast<int64_t>(*plan.last_page) * 2 + half) * p.half_rows * 128;
  const auto put = [&](int number, float x) {
    const int byte = number * 2;
    const __nv_bfloat16 rounded = __float2bfloat16(x);
    *reinterpret_cast<__nv_bfloat16*>(to + byte) = rounded;
    *reinterpret_cast<__nv_bfloat16*>(stage + (byte ^ ((byte >> 3) & 0x70))) = rounded;
  };
  for (int k = thread; k < T::kRank * h; k += n_threads) {
    put(T::kHeadOffset / 2 + (k % T::kRank * h + k / T::kRank) * 64 + column, a[k]);
  }
  const int rotary_half = p.rotary_dim / 2;
  for (int k = thread; k < T::kRank * T::kDim; k += n_threads) {
    const int r = k / T::kDim, i = k % T::kDim;
    const float* x = b + r * T::kDim;
    put((r * 64 + column) * T::kDim + i, half == 0 ? Rotated(x, i, rotary_half, plan.cos, plan.sin) : x[i]);
  }
  ptx::FenceSharedForCopies();
}

}  // namespace t6::cuda
