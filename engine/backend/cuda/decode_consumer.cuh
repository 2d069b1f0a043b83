// A consumer warp of the decode kernel: scores, weights and values of its heads and tokens, in registers.
#pragma once

#include "engine/backend/cuda/decode_params.cuh"

namespace t6::cuda {

// Where a lane finds its row of the 8 x 8 matrices that ldmatrix takes, in a stage that the copy has
// swizzled: the 16-byte chunk of a 128-byte row is exchanged by the row's number modulo 8. B's rows are d
// numbers of one token.
template <int kDim>
struct TokenRows {
  // Of chunk 0 or 1 of a token's row.
  __device__ static uint32_t Offset(int token, int chunk) {
    const int byte = token * kDim * 2 + chunk * 16;
    return byte ^ ((byte >> 3) & 0x70);
  }
  // The address of chunk + 2 * step: exclusive-or on the bits that the swizzle touches is the whole sum below
  // 128 bytes.
  __device__ static uint32_t Step(uint32_t address, int step) {
    if constexpr (kDim <= 64) return address ^ (step << 5);
    return ((address ^ ((step & 3) << 5)) ^ ((step >> 2) << 4)) + (step >> 2) * 128;
  }
};

// A warp's share of a segment: 16 heads x kWarpTokens tokens of every page. Registers hold the query, the
// running maximum and sum of each lane's two heads, and the output. Fragments are those of mma.m16n8k16: lane
// l has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
template <class T>
struct ConsumerWarp {
  static constexpr int kGroups = T::kGroups;

  uint32_t query[T::kSteps][4];
  float out[T::kDim / 8][4];
  float weight[kGroups][2][4];  // logits, then weights, of one page: [16 tokens][8 tokens][fragment]
  float max[2], sum[2];
  uint32_t key_offset, value_offset, head_offset[T::kRank];

  __device__ ConsumerWarp(const DecodeParams& p, int head_tile, int token_group, int lane) {
    const int token = token_group * T::kWarpTokens, row = lane & 7, low = (lane >> 3) & 1, high = lane >> 4;
    key_offset = TokenRows<T::kDim>::Offset(token + high * 8 + row, low);
    value_offset = TokenRows<T::kDim>::Offset(token + low * 8 + row, high);
#pragma unroll
    for (int r = 0; r < T::kRank; ++r) {
      const int byte = (r * p.n_heads + head_tile * kTileHeads + low * 8 + row) * 128 + token * 2 + high * 16;
      head_offset[r] = T::kHeadOffset + (byte ^ ((byte >> 3) & 0x70));
    }
  }

  __device__ void Start(uint32_t query_address, int head_tile, int lane, int n_heads) {
    constexpr int kStrideBytes = (T::kDim + 8) * 2;
    const uint32_t address =
        query_address + (head_tile * kTileHeads + (lane & 15)) * kStrideBytes + (lane >> 4) * 16;
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) ptx::LoadMatrices(query[step], address + step * 32);
#pragma unroll
    for (int i = 0; i < T::kDim / 8; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
      // What lies where a missing head's factors would may not make the warp rescale: the others' bits would
      // depend on it.
#pragma unroll
    for (int i = 0; i < 2; ++i)
      max[i] = head_tile * kTileHeads + (lane >> 2) + 8 * i < n_heads ? kNoMax : -kNoMax;
    sum[0] = sum[1] = 0.0f;
  }

  // weight = sum over r of a_K,r * (Q B_K,r^T).
  __device__ void Score(uint32_t stage) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      float(&logits)[2][4] = weight[group];
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) {
        const uint32_t keys = stage + key_offset + r * T::kRankBytes + group * 16 * T::kDim * 2;
        uint32_t a[4];
        ptx::LoadMatrices(a, (stage + head_offset[r]) ^ (group << 5));
        float s[2][4] = {};
#pragma unroll
        for (int step = 0; step < T::kSteps; ++step) {
          uint32_t b[4];
          ptx::LoadMatrices(b, TokenRows<T::kDim>::Step(keys, step));
          ptx::MultiplyAdd(s[0], query[step], b[0], b[1]);
          ptx::MultiplyAdd(s[1], query[step], b[2], b[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // a's matrices: heads 0..7 and 8..15 of tokens 0..7, then of 8..15
          float* l = &logits[i / 2][i % 2 * 2];
          const float* product = &s[i / 2][i % 2 * 2];
          const float low = ptx::LowBf16(a[i]), high = ptx::HighBf16(a[i]);
          l[0] = r == 0 ? low * product[0] : fmaf(low, product[0], l[0]);
          l[1] = r == 0 ? high * product[1] : fmaf(high, product[1], l[1]);
        }
      }
    }
  }

  // Logits of tokens from `valid` on, counted from the warp's first, become -inf: whatever stood there, NaN
  // included.
  __device__ void Mask(int valid, int lane) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = group * 16 + i / 4 * 8 + (lane & 3) * 2 + i % 2;
        if (token >= valid) weight[group][i / 4][i % 4] = -INFINITY;
      }
    }
  }

  // Logits become weights 2^(logit - max). The maximum moves only when it has to, so that no lane asks its
  // neighbours on most pages.
  __device__ void Weigh() {
    float most[2] = {weight[0][0][0], weight[0][0][2]};
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) most[i % 4 / 2] = fmaxf(most[i % 4 / 2], weight[group][i / 4][i % 4]);
    }
    if (__any_sync(~0u, most[0] > max[0] + T::kRescaleAbove || most[1] > max[1] + T::kRescaleAbove))
      Rescale(most);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& w = weight[group][i / 4][i % 4];
        w = ptx::Exp2(w - max[i % 4 / 2]);
        sum[i % 4 / 2] += w;
      }
    }
  }

  __device__ void Rescale(float (&most)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 1));
      most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 2));
      const float risen = fmaxf(max[i], most[i] - T::kWeightBits);
      const float factor = ptx::Exp2(max[i] - risen);
      max[i] = risen;
      sum[i] *= factor;
#pragma unroll
      for (int n = 0; n < T::kDim / 8; ++n) out[n][2 * i] *= factor, out[n][2 * i + 1] *= factor;
    }
  }

  // out += (weight * a_V,r) B_V,r. kMasked: factors of tokens from `valid` on are taken as 0, or 0 * NaN
  // would spread.
  template <bool kMasked>
  __device__ void Accumulate(uint32_t stage, int valid, int lane) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      uint32_t keep[2] = {~0u, ~0u};  // of this lane's token pairs
      if constexpr (kMasked) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = group * 16 + i * 8 + (lane & 3) * 2;
          keep[i] = (token < valid ? 0xffffu : 0u) | (token + 1 < valid ? 0xffff0000u : 0u);
        }
      }
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) {
        const uint32_t values = stage + value_offset + r * T::kRankBytes + group * 16 * T::kDim * 2;
        uint32_t a[4], w[4];
        ptx::LoadMatrices(a, (stage + head_offset[r]) ^ (group << 5));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (kMasked) a[i] &= keep[i / 2];
          const float* p = &weight[group][i / 2][i % 2 * 2];
          w[i] = ptx::PackBf16(p[0] * ptx::LowBf16(a[i]), p[1] * ptx::HighBf16(a[i]));
        }
#pragma unroll
        for (int step = 0; step < T::kSteps; ++step) {
          uint32_t b[4];
          ptx::LoadMatricesTransposed(b, TokenRows<T::kDim>::Step(values, step));
          if constexpr (kMasked) {
#pragma unroll
            for (int i = 0; i < 4; ++i) b[i] &= keep[i % 2];
          }
          ptx::MultiplyAdd(out[2 * step], w, b[0], b[1]);
          ptx::MultiplyAdd(out[2 * step + 1], w, b[2], b[3]);
        }
      }
    }
  }

  // The warp's result to shared memory: out rows, and (max, sum) of each head.
  __device__ void Publish(float* merge, float2* max_sum, int lane) {
    const int row = lane >> 2, column = (lane & 3) * 2;
#pragma unroll
    for (int n = 0; n < T::kDim / 8; ++n) {
      float* to = merge + T::MergeOffset(row, n * 8 + column);
      *reinterpret_cast<float2*>(to) = make_float2(out[n][0], out[n][1]);
      *reinterpret_cast<float2*>(to + 8 * T::kDim) = make_float2(out[n][2], out[n][3]);
    }
    PublishSums(max_sum, lane);
  }
  __device__ void PublishSums(float2* max_sum, int lane) {
    const int row = lane >> 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
      sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
      if ((lane & 3) == 0) max_sum[row + 8 * i] = make_float2(max[i], sum[i]);
    }
  }
};

}  // namespace t6::cuda
