// Forms a segment's query in the step kernel: of some of the heads, from projections that appear while it
// runs (exchange.cuh).
#pragma once

#include "engine/backend/cuda/decode_query.cuh"
#include "engine/backend/cuda/exchange.cuh"

namespace t6::cuda {

// Writes the tiles' heads' QueryRows. The factors pass through shared memory, so that all of them are looked
// at at once; warps share heads and pairs of columns as they come.
template <class T>
class StepQueryFormer {
 public:
  static_assert(!T::kFp8, "a step's program attends to bfloat16 pages");
  static constexpr int kStride = QueryRows<T>::kStride, kHeads = 4;

  // `memory`: the rows, of the tiles' heads, then the factors.
  __device__ StepQueryFormer(const DecodeParams& p, const HeadTiles& tiles, float* memory, int warp, int lane,
                             int n_warps)
      : p_(p),
        first_head_(tiles.first * kTileHeads),
        end_head_(first_head_ + tiles.count * kTileHeads),
        rows_{reinterpret_cast<__nv_bfloat16*>(memory)},
        factors_(memory + tiles.count * kTileHeads * kStride / 2),
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
    for (int head = first_head_ + warp_ * kHeads; head < end_head_; head += n_warps_ * kHeads) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        if (lane_ + 32 * i < T::kDim / 2) FormPair(q, head, lane_ + 32 * i, c[i], s[i]);
      }
    }
    ptx::NamedBarrier(kConsumerBarrier, n_warps_ * 32);
  }

  // A_K B_K A_V B_V of the token of a segment that holds it, from Form on until the warps' results.
  __device__ const float* new_factors() const { return factors_ + p_.rank_q * (p_.n_heads + T::kDim); }

 private:
  __device__ void StageFactors(const float* q, bool with_new) {
    constexpr int kLoads = 12;
    const int n = (p_.rank_q + (with_new ? 2 * T::kRank : 0)) * (p_.n_heads + T::kDim);
    const int step = n_warps_ * 32;
    if (n == 0) return;
    if (p_.rank_q == 0) q += p_.n_heads * T::kDim;
    for (int base = warp_ * 32 + lane_; base < n; base += kLoads * step) {
      float x[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const float* at = q + base + i * step;
        x[i] = base + i * step >= n ? 0.0f : LookAt(at);
      }
      bool absent;
      do {
        absent = false;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          if (IsAbsent(x[i])) x[i] = LookAt(q + base + i * step), absent = true;
        }
      } while (absent);
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
      rows_.Put(head - first_head_ + k, first, (x1[k] * c + x2[k] * s) * scale);
      rows_.Put(head - first_head_ + k, second, (x2[k] * c - x1[k] * s) * scale);
    }
  }

  __device__ static float Number(const float* at) {
    float x;
    do {
      x = LookAt(at);
    } while (IsAbsent(x));
    return x;
  }

  const DecodeParams& p_;
  int first_head_, end_head_;
  QueryRows<T> rows_;
  float* factors_;
  int warp_, lane_, n_warps_;
};

}  // namespace t6::cuda
