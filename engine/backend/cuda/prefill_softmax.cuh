// The softmax of scores whose rows are query rows: a warp's part of an accumulator of M = 64
// (prefill_wgmma.cuh), kScores registers of a lane. Weights are 2^(score - base). A float carries a weight of
// 2^50 as exactly as one of 1, so the base need not be a row's greatest score: it stays 0 while the first
// scores of a row are moderate, and neither a maximum is looked for nor a base subtracted. Only where the
// weights of a block add up to too much are its scores formed once more and the base moved.
#pragma once

#include "engine/backend/cuda/decode_consumer.cuh"

namespace t6::cuda {

// Of a lane's two rows, l / 4 and l / 4 + 8.
struct SoftmaxRows {
  float base[2], sum[2];
  bool shifts;  // a row of the warp has a base that is not 0

  static constexpr float kModerate = 40.0f;   // of a greatest score: with it a base is 0
  static constexpr float kMostSum = 0x1p60f;  // of a block's weights; a lane's quarter of a row

  // What stands for a row whose greatest first score is `most`.
  __device__ static float BaseOf(float most) {
    return fabsf(most) <= kModerate || most == -INFINITY ? 0.0f : most;
  }
  __device__ static bool IsTooMuch(const float (&sum)[2]) {
    return !(sum[0] < kMostSum && sum[1] < kMostSum);
  }

  // Of row k, in all four lanes that share it.
  template <int kScores>
  __device__ static float Greatest(const float (&score)[kScores], int k) {
    float most = fmaxf(score[2 * k], score[2 * k + 1]);
#pragma unroll
    for (int i = 4; i < kScores; i += 4) {
      most = fmaxf(most, fmaxf(score[i + 2 * k], score[i + 2 * k + 1]));
    }
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    return fmaxf(most, __shfl_xor_sync(~0u, most, 2));
  }

  // The rows' base from their scores, the first ones or those that were too much; `factor` is what that makes
  // of everything added before.
  template <int kScores>
  __device__ void MoveBase(const float (&score)[kScores], bool is_first, float (&factor)[2]) {
    bool any = false;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float most = Greatest(score, k);
      const float moved = is_first ? BaseOf(most) : fmaxf(base[k], most);
      factor[k] = is_first ? 1.0f : ptx::Exp2(base[k] - moved);
      base[k] = moved, sum[k] = is_first ? 0.0f : sum[k] * factor[k];
      any |= moved != 0.0f;
    }
    shifts = __any_sync(~0u, any);
  }

  // Rows to which nothing has been added, since they saw none of the scores so far: these are their first.
  template <int kScores>
  __device__ void BaseEmptyRows(const float (&score)[kScores]) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float total = Total(k), most = Greatest(score, k);
      if (total == 0.0f) base[k] = BaseOf(most);
    }
    shifts = __any_sync(~0u, base[0] != 0.0f || base[1] != 0.0f);
  }

  // Scores become weights; `more`: their sums.
  template <int kScores>
  __device__ void Weigh(float (&score)[kScores], float (&more)[2]) const {
    if (shifts) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) score[i] -= base[i / 2 % 2];
    }
    float part[2][2] = {};
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      score[i] = ptx::Exp2(score[i]);
      part[i / 2 % 2][i % 2] += score[i];
    }
    more[0] = part[0][0] + part[0][1], more[1] = part[1][0] + part[1][1];
  }

  // Over the four lanes of a row.
  __device__ float Total(int k) const {
    float total = sum[k];
    total += __shfl_xor_sync(~0u, total, 1);
    return total + __shfl_xor_sync(~0u, total, 2);
  }
};

// Scores of columns beyond what rows l / 4 and l / 4 + 8 see, counted from the lane's first column, become
// -inf.
template <int kScores>
__device__ inline void MaskScores(float (&score)[kScores], int last, int last_of_second) {
#pragma unroll
  for (int i = 0; i < kScores / 4; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (8 * i + e > last) score[4 * i + e] = -INFINITY;
      if (8 * i + e > last_of_second) score[4 * i + 2 + e] = -INFINITY;
    }
  }
}

// What was added to an output accumulator before its base moved.
__device__ inline void Rescale(float (&out)[32], const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) out[i] *= factor[i / 2 % 2];
}

// Weights as the left operand of the next product: an accumulator's columns, two of its groups of 8 a step.
template <int kScores>
__device__ inline void PackWeights(const float (&score)[kScores], uint32_t (&weight)[kScores / 8][4]) {
#pragma unroll
  for (int step = 0; step < kScores / 8; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weight[step][i] = ptx::PackBf16(score[8 * step + 2 * i], score[8 * step + 2 * i + 1]);
    }
  }
}

// The scores of a warp's 16 rows by its own products, without the warpgroup. keys: [2 * kScores tokens][64]
// in shared memory, swizzled.
template <int kScores>
__device__ inline void MultiplyAgain(float (&score)[kScores], const uint32_t (&query)[4][4], uint32_t keys,
                                     int lane) {
  const uint32_t row = keys + TokenRows<64>::Offset((lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1);
#pragma unroll
  for (int i = 0; i < kScores / 8; ++i) {
    float c[2][4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t b[4];
      ptx::LoadMatrices(b, TokenRows<64>::Step(row + i * 16 * 128, step));
      ptx::MultiplyAdd(c[0], query[step], b[0], b[1]);
      ptx::MultiplyAdd(c[1], query[step], b[2], b[3]);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) score[8 * i + e] = c[e / 4][e % 4];
  }
}

}  // namespace t6::cuda
