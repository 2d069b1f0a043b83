// Forms a segment's query as decode_query.cuh does, in the step kernel: of some of the heads, from
// projections that may appear while it runs.
#pragma once

#include "engine/backend/cuda/decode_fp8.cuh"
#include "engine/backend/cuda/exchange.cuh"

namespace t6::cuda {

// Writes the scaled, rotated query of every head as bfloat16 rows (for fp8 pages as half precision, in the
// order of their operands) [head tiles * 16][d + 8]: the padding
// spreads ldmatrix's rows over all banks. Heads past the last are zero. The factors pass through shared
// memory, so that all of them are asked for at once; the angles, before the kernels in front are done.
// kAwaits: the projections appear while the kernel runs (exchange.cuh).
template <class T, bool kAwaits = false>
class StepQueryFormer {
 public:
  static constexpr int kStride = T::kTileQuery ? T::kDim : T::kDim + 8, kHeads = 4;

  // `memory`: the rows, of the tiles' heads, then the factors.
  __device__ StepQueryFormer(const DecodeParams& p, const HeadTiles& tiles, float* memory, int warp, int lane,
                             int n_warps)
      : p_(p),
        first_head_(tiles.first * kTileHeads),
        end_head_(first_head_ + tiles.count * kTileHeads),
        rows_(reinterpret_cast<__nv_bfloat16*>(memory)),
        factors_(memory + tiles.count * kTileHeads * kStride / 2),
        warp_(warp),
        lane_(lane),
        n_warps_(n_warps) {}
  // Of all heads.
  __device__ StepQueryFormer(const DecodeParams& p, float* memory, int warp, int lane, int n_warps)
      : StepQueryFormer(p, {0, p.head_tiles}, memory, warp, lane, n_warps) {}

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
    for (int head = first_head_ + warp_ * kHeads; head < end_head_; head += n_warps_ * kHeads) {
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
    constexpr int kLoads = kAwaits ? 12 : 8;
    const int n = (p_.rank_q + (with_new ? 2 * T::kRank : 0)) * (p_.n_heads + T::kDim);
    const int step = n_warps_ * 32;
    if (n == 0) return;
    if (p_.rank_q == 0) q += p_.n_heads * T::kDim;
    for (int base = warp_ * 32 + lane_; base < n; base += kLoads * step) {
      float x[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const float* at = q + base + i * step;
        x[i] = base + i * step >= n ? 0.0f : kAwaits ? LookAt(at) : *at;
      }
      if constexpr (kAwaits) {
        bool absent;
        do {
          absent = false;
#pragma unroll
          for (int i = 0; i < kLoads; ++i) {
            if (IsAbsent(x[i])) x[i] = LookAt(q + base + i * step), absent = true;
          }
        } while (absent);
      }
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
        x1[k] = Number(q + (head + k) * T::kDim + first), x2[k] = Number(q + (head + k) * T::kDim + second);
      }
    } else {
      constexpr int kRanks = 6;  // at a time, all asked for at once
      const float* b = factors_ + p_.n_heads * p_.rank_q;
      for (int base = 0; base < p_.rank_q; base += kRanks) {
        float b1[kRanks], b2[kRanks], a[kHeads][kRanks];
#pragma unroll
        for (int i = 0; i < kRanks; ++i) {
          const int r = min(base + i, p_.rank_q - 1);
          b1[i] = b[r * T::kDim + first], b2[i] = b[r * T::kDim + second];
#pragma unroll
          for (int k = 0; k < kHeads; ++k) a[k][i] = factors_[min(head + k, p_.n_heads - 1) * p_.rank_q + r];
        }
#pragma unroll
        for (int i = 0; i < kRanks; ++i) {
          if (base + i >= p_.rank_q) break;
#pragma unroll
          for (int k = 0; k < kHeads; ++k) {
            x1[k] = fmaf(a[k][i], b1[i], x1[k]), x2[k] = fmaf(a[k][i], b2[i], x2[k]);
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
      const float scale = head + k < p_.n_heads ? p_.query_scale : 0.0f;
      Put(head + k, first, (x1[k] * c + x2[k] * s) * scale);
      Put(head + k, second, (x2[k] * c - x1[k] * s) * scale);
    }
  }

  __device__ static float Number(const float* at) {
    if constexpr (kAwaits) {
      float x;
      do {
        x = LookAt(at);
      } while (IsAbsent(x));
      return x;
    } else {
      return *at;
    }
  }

  __device__ void Put(int head, int i, float x) {
    if constexpr (T::kFp8) {
      constexpr float kMost = 65504.0f;  // of half precision
      const int row = head - first_head_, column = T::kTileQuery ? Fp8TileColumn(row, i) : Fp8Column(i);
      reinterpret_cast<__half*>(rows_)[row * kStride + column] =
          __float2half_rn(fminf(fmaxf(x, -kMost), kMost));
    } else {
      rows_[(head - first_head_) * kStride + i] = __float2bfloat16(x);
    }
  }

  const DecodeParams& p_;
  int first_head_, end_head_;
  __nv_bfloat16* rows_;
  float* factors_;
  int warp_, lane_, n_warps_;
};

}  // namespace t6::cuda
