// Forms a segment's query from its factors, once a block and segment.
#pragma once

#include "engine/backend/cuda/decode_fp8.cuh"

namespace t6::cuda {

// Writes the scaled, rotated query of every head as bfloat16 rows (for fp8 pages as half precision, in the
// order of their operands) [head tiles * 16][d + 8]: the padding
// spreads ldmatrix's rows over all banks. Heads past the last are zero. The factors pass through shared
// memory, so that all of them are asked for at once; the angles, before the kernels in front are done.
template <class T>
class QueryFormer {
 public:
  static constexpr int kStride = T::kTileQuery ? T::kDim : T::kDim + 8, kHeads = 4;

  // `memory`: the rows, then the factors.
  __device__ QueryFormer(const DecodeParams& p, float* memory, int warp, int lane, int n_warps)
      : p_(p),
        rows_(reinterpret_cast<__nv_bfloat16*>(memory)),
        factors_(memory + p.head_tiles * kTileHeads * kStride / 2),
        warp_(warp),
        lane_(lane),
        n_warps_(n_warps) {}

  // All consumer warps; the rows are there when it returns. cos, sin: of the segment's position.
  __device__ void Form(const DecodeSegment& segment, const float* cos, const float* sin) {
    constexpr int kPairs = T::kDim < 64 ? 1 : T::kDim / 64;  // of a lane
    const int half = p_.rotary_dim / 2;
    float c[kPairs], s[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int pair = lane_ + 32 * i;
      c[i] = pair < half ? cos[pair] : 1.0f, s[i] = pair < half ? sin[pair] : 0.0f;
    }
    ptx::WaitForPriorKernels();
    const float* q = p_.qkv + static_cast<int64_t>(segment.row) * p_.qkv_stride;
    StageFactors(q, p_.stores && segment.holds_newest);
    for (int head = warp_ * kHeads; head < p_.head_tiles * kTileHeads; head += n_warps_ * kHeads) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        if (lane_ + 32 * i < T::kDim / 2) FormPair(q, head, lane_ + 32 * i, c[i], s[i]);
      }
    }
    if constexpr (T::kTileQuery) ptx::FenceSharedForCopies();  // products read it as copies write
    ptx::NamedBarrier(kConsumerBarrier, n_warps_ * 32);
  }

  // A_K B_K A_V B_V of the token of a segment that holds it, from Form on until the warps' results.
  __device__ const float* new_factors() const { return factors_ + p_.rank_q * (p_.n_heads + T::kDim); }

 private:
  __device__ void StageFactors(const float* q, bool with_new) {
    constexpr int kLoads = 8;
    const int n = (p_.rank_q + (with_new ? 2 * T::kRank : 0)) * (p_.n_heads + T::kDim);
    const int step = n_warps_ * 32;
    if (n == 0) return;
    if (p_.rank_q == 0) q += p_.n_heads * T::kDim;
    for (int base = warp_ * 32 + lane_; base < n; base += kLoads * step) {
      float x[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) x[i] = base + i * step < n ? q[base + i * step] : 0.0f;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (base + i * step < n) factors_[base + i * step] = x[i];
      }
    }
    ptx::NamedBarrier(kConsumerBarrier, n_warps_ * 32);
  }

  // Columns that rotate together, or two neighbours that do not rotate, of kHeads heads from `head` on.
  __device__ void FormPair(const float* q, int head, int pair, float c, float s) {
    const int half = p_.rotary_dim / 2;
    const bool rotates = pair < half;
    const int first = rotates ? pair : p_.rotary_dim + 2 * (pair - half);
    const int second = rotates ? pair + half : first + 1;
    float x1[kHeads] = {}, x2[kHeads] = {};
    if (p_.rank_q == 0) {
#pragma unroll
      for (int k = 0; k < kHeads; ++k) {
        if (head + k >= p_.n_heads) break;
        x1[k] = q[(head + k) * T::kDim + first], x2[k] = q[(head + k) * T::kDim + second];
      }
    } else {
      const float* b = factors_ + p_.n_heads * p_.rank_q;
      constexpr int kRanks = 4;  // at a time, so that few wait for shared memory
      for (int base = 0; base < p_.rank_q; base += kRanks) {
#pragma unroll
        for (int i = 0; i < kRanks; ++i) {
          const int r = base + i;
          const bool exists = r < p_.rank_q;
          const float b1 = exists ? b[r * T::kDim + first] : 0.0f;
          const float b2 = exists ? b[r * T::kDim + second] : 0.0f;
#pragma unroll
          for (int k = 0; k < kHeads; ++k) {
            const float a = exists && head + k < p_.n_heads ? factors_[(head + k) * p_.rank_q + r] : 0.0f;
            x1[k] = fmaf(a, b1, x1[k]), x2[k] = fmaf(a, b2, x2[k]);
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
      Put(head + k, first, (x1[k] * c + x2[k] * s) * p_.query_scale);
      Put(head + k, second, (x2[k] * c - x1[k] * s) * p_.query_scale);
    }
  }

  __device__ void Put(int head, int i, float x) {
    if constexpr (T::kFp8) {
      constexpr float kMost = 65504.0f;  // of half precision
      const int column = T::kTileQuery ? Fp8TileColumn(head, i) : Fp8Column(i);
      reinterpret_cast<__half*>(rows_)[head * kStride + column] =
          __float2half_rn(fminf(fmaxf(x, -kMost), kMost));
    } else {
      rows_[head * kStride + i] = __float2bfloat16(x);
    }
  }

  const DecodeParams& p_;
  __nv_bfloat16* rows_;
  float* factors_;
  int warp_, lane_, n_warps_;
};

}  // namespace t6::cuda
