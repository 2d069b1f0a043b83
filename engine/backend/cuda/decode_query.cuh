// Forms a segment's query from its factors, once a block and segment.
#pragma once

#include "engine/backend/cuda/decode_fp8.cuh"

namespace t6::cuda {

// The scaled, rotated query of heads, as bfloat16 rows (for fp8 pages as half precision, in the order of
// their operands) [head tiles * 16][d + 8]: the padding spreads ldmatrix's rows over all banks. Heads past
// the last are zero.
template <class T>
struct QueryRows {
  static constexpr int kStride = T::kTileQuery ? T::kDim : T::kDim + 8;
  __nv_bfloat16* rows;

  __device__ void Put(int row, int i, float x) const {
    if constexpr (T::kFp8) {
      constexpr float kMost = 65504.0f;  // of half precision
      const int column = T::kTileQuery ? Fp8TileColumn(row, i) : Fp8Column(i);
      reinterpret_cast<__half*>(rows)[row * kStride + column] =
          __float2half_rn(fminf(fmaxf(x, -kMost), kMost));
    } else {
      rows[row * kStride + i] = __float2bfloat16(x);
    }
  }
};

// Writes all heads' QueryRows. A warp forms its own heads: it has B in registers and A in shared memory, four
// ranks a word, and asks for all of both at once.
template <class T>
class QueryFormer {
 public:
  static constexpr int kStride = QueryRows<T>::kStride;

  // `memory`: the rows, then A, then the new token's factors.
  __device__ QueryFormer(const DecodeParams& p, float* memory, int warp, int lane, int n_warps)
      : p_(p),
        rank_stride_((p.rank_q + 3) / 4 * 4),
        rows_{reinterpret_cast<__nv_bfloat16*>(memory)},
        heads_(memory + p.head_tiles * kTileHeads * kStride / 2),
        new_factors_(heads_ + p.head_tiles * kTileHeads * rank_stride_),
        warp_(warp),
        lane_(lane),
        n_warps_(n_warps) {}

  // `tiles`: all of them.
  __device__ QueryFormer(const DecodeParams& p, const HeadTiles& /*tiles*/, float* memory, int warp, int lane,
                         int n_warps)
      : QueryFormer(p, memory, warp, lane, n_warps) {}

  // All consumer warps; the rows are there when it returns. cos, sin: of the segment's position.
  __device__ void Form(const DecodeSegment& segment, const float* cos, const float* sin) {
    Pair pairs[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) pairs[i] = PairOf(lane_ + 32 * i, cos, sin);
    ptx::WaitForPriorKernels();
    const float* q = p_.qkv + static_cast<int64_t>(segment.row) * p_.qkv_stride;
    const float* from = q + (p_.rank_q == 0 ? p_.n_heads * T::kDim : p_.rank_q * (p_.n_heads + T::kDim));
    const int n_new = p_.stores && segment.holds_newest ? 2 * T::kRank * (p_.n_heads + T::kDim) : 0;
    float x[kNewLoads];
    LoadNew(from, 0, n_new, x);
    if (p_.rank_q == 0) {
      FormFull(q, pairs);
    } else {
      FormFromFactors(q, pairs);
    }
    for (int done = 0; done < n_new; done += kNewLoads * n_warps_ * 32) {
      if (done > 0) LoadNew(from, done, n_new, x);
      StoreNew(done, n_new, x);
    }
    if constexpr (T::kTileQuery) ptx::FenceSharedForCopies();  // products read it as copies write
    ptx::NamedBarrier(kConsumerBarrier, n_warps_ * 32);
  }

  // A_K B_K A_V B_V of the token of a segment that holds it, from Form on until the warps' results.
  __device__ const float* new_factors() const { return new_factors_; }

 private:
  static constexpr int kPairs = T::kDim < 64 ? 1 : T::kDim / 64;         // of a lane
  static constexpr int kAtOnce = 4, kHeads = kAtOnce * T::kQueryPasses;  // of a warp
  static constexpr int kRanks = T::kRank == 1 ? 16 : 8;                  // of B in registers
  static constexpr int kNewLoads = 2;                                    // numbers of the new token, at once

  // Columns that rotate together, or two neighbours that do not rotate.
  struct Pair {
    int first, second;
    float cos, sin;
  };
  __device__ Pair PairOf(int i, const float* cos, const float* sin) const {
    const int half = p_.rotary_dim / 2;
    if (i < half) return {i, i + half, cos[i], sin[i]};
    const int first = p_.rotary_dim + 2 * (i - half);
    return {first, first + 1, 1.0f, 0.0f};
  }
  __device__ bool HasPair(int i) const { return lane_ + 32 * i < T::kDim / 2; }
  // The first of a warp's heads of a pass, of which it has kAtOnce.
  __device__ int HeadOf(int pass) const { return (pass * n_warps_ + warp_) * kAtOnce; }
  // Always where a warp has as many heads as the others.
  __device__ bool HasHeads(int pass) const {
    return !T::kTileQuery || HeadOf(pass) < p_.head_tiles * kTileHeads;
  }

  __device__ void FormFull(const float* q, const Pair (&pairs)[kPairs]) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (!HasPair(i)) continue;
#pragma unroll
      for (int pass = 0; pass < T::kQueryPasses; ++pass) {
        if (!HasHeads(pass)) break;
        const int head = HeadOf(pass);
        float x1[kAtOnce], x2[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const float* row = q + (head + j) * T::kDim;
          const bool exists = head + j < p_.n_heads;
          x1[j] = exists ? row[pairs[i].first] : 0.0f, x2[j] = exists ? row[pairs[i].second] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) PutPair(head + j, pairs[i], x1[j], x2[j]);
      }
    }
  }

  __device__ void FormFromFactors(const float* q, const Pair (&pairs)[kPairs]) {
    const float* b = q + p_.n_heads * p_.rank_q;
    float b1[kRanks], b2[kRanks];
    LoadRanks(b, 0, pairs[0], b1, b2);
    StageHeads(q);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (i > 0) LoadRanks(b, 0, pairs[i], b1, b2);
#pragma unroll
      for (int pass = 0; pass < T::kQueryPasses; ++pass) {
        if (!HasHeads(pass)) break;
        const int head = HeadOf(pass);
        float x1[kAtOnce] = {}, x2[kAtOnce] = {};
        AddRanks(head, 0, b1, b2, x1, x2);
        for (int r = kRanks; r < p_.rank_q; r += kRanks) {
          LoadRanks(b, r, pairs[i], b1, b2);
          AddRanks(head, r, b1, b2, x1, x2);
        }
        if (p_.rank_q > kRanks && pass + 1 < T::kQueryPasses) LoadRanks(b, 0, pairs[i], b1, b2);
        if (!HasPair(i)) continue;
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) PutPair(head + j, pairs[i], x1[j], x2[j]);
      }
    }
  }

  // b1, b2 = B's ranks from `rank` on, at a pair's columns.
  __device__ void LoadRanks(const float* b, int rank, const Pair& pair, float (&b1)[kRanks],
                            float (&b2)[kRanks]) const {
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      const bool exists = rank + r < p_.rank_q && HasPair(0);
      b1[r] = exists ? b[(rank + r) * T::kDim + pair.first] : 0.0f;
      b2[r] = exists ? b[(rank + r) * T::kDim + pair.second] : 0.0f;
    }
  }

  // A of the warp's heads, [head][rank_stride]; zeros where there is no head or rank.
  __device__ void StageHeads(const float* a) {
    for (int r = lane_; r < rank_stride_; r += 32) {
      float x[kHeads];
#pragma unroll
      for (int k = 0; k < kHeads; ++k) {
        const int head = HeadOf(k / kAtOnce) + k % kAtOnce;
        x[k] = r < p_.rank_q && head < p_.n_heads ? a[head * p_.rank_q + r] : 0.0f;
      }
#pragma unroll
      for (int k = 0; k < kHeads; ++k) {
        if (HasHeads(k / kAtOnce)) heads_[(HeadOf(k / kAtOnce) + k % kAtOnce) * rank_stride_ + r] = x[k];
      }
    }
  }

  // x += a b of kAtOnce heads, over kRanks ranks.
  __device__ void AddRanks(int head, int rank, const float (&b1)[kRanks], const float (&b2)[kRanks],
                           float (&x1)[kAtOnce], float (&x2)[kAtOnce]) const {
#pragma unroll
    for (int r = 0; r < kRanks; r += 4) {
      if (rank + r >= p_.rank_q) break;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float4 a = *reinterpret_cast<const float4*>(heads_ + (head + j) * rank_stride_ + rank + r);
        x1[j] = fmaf(a.x, b1[r], x1[j]), x2[j] = fmaf(a.x, b2[r], x2[j]);
        x1[j] = fmaf(a.y, b1[r + 1], x1[j]), x2[j] = fmaf(a.y, b2[r + 1], x2[j]);
        x1[j] = fmaf(a.z, b1[r + 2], x1[j]), x2[j] = fmaf(a.z, b2[r + 2], x2[j]);
        x1[j] = fmaf(a.w, b1[r + 3], x1[j]), x2[j] = fmaf(a.w, b2[r + 3], x2[j]);
      }
    }
  }

  __device__ void LoadNew(const float* from, int done, int n, float (&x)[kNewLoads]) const {
#pragma unroll
    for (int i = 0; i < kNewLoads; ++i) {
      const int k = done + (i * n_warps_ + warp_) * 32 + lane_;
      x[i] = k < n ? from[k] : 0.0f;
    }
  }
  __device__ void StoreNew(int done, int n, const float (&x)[kNewLoads]) {
#pragma unroll
    for (int i = 0; i < kNewLoads; ++i) {
      const int k = done + (i * n_warps_ + warp_) * 32 + lane_;
      if (k < n) new_factors_[k] = x[i];
    }
  }

  __device__ void PutPair(int head, const Pair& pair, float x1, float x2) {
    rows_.Put(head, pair.first, (x1 * pair.cos + x2 * pair.sin) * p_.query_scale);
    rows_.Put(head, pair.second, (x2 * pair.cos - x1 * pair.sin) * p_.query_scale);
  }

  const DecodeParams& p_;
  int rank_stride_;
  QueryRows<T> rows_;
  float *heads_, *new_factors_;
  int warp_, lane_, n_warps_;
};

}  // namespace t6::cuda
