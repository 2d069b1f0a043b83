// The rows kernel's products straight from factors: S_r = B_r Q^T and out += B_r^T (weights a_r)^T, with kH *
// kN rows of all heads of a warpgroup as columns. Nothing is expanded and B is read where the copy put it.
#pragma once

#include "engine/backend/cuda/rows_consumer.cuh"

namespace t6::cuda {

__device__ inline void Clear16Bytes(uint32_t address) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
}

// score = sum over r of a_K,r (B_K,r Q^T).
template <class T>
__device__ void RowsConsumer<T>::ScoreFactored(uint32_t stage) {
  float products[kR][kColumns / 2];
  const uint64_t query = wgmma::Tile(shared_.Query(first_head_));
  wgmma::Fence();
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) {
      wgmma::MmaShared<0, 0>(products[r], wgmma::Tile(stage + r * T::kRankBytes) + step * wgmma::kColumnStep,
                             query + step * wgmma::kColumnStep, step > 0);
    }
  }
  wgmma::Commit();
  uint32_t a[kH][kR];
#pragma unroll
  for (int h = 0; h < kH; ++h) {
#pragma unroll
    for (int r = 0; r < kR; ++r) a[h][r] = TokenFactors(stage, h, r);
  }
  wgmma::Wait<0>();
#pragma unroll
  for (int r = 0; r < kR; ++r) wgmma::Settle(products[r]);
#pragma unroll
  for (int h = 0; h < kH; ++h) {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      float x = 0.0f;
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const float scalar = i % 4 < 2 ? ptx::LowBf16(a[h][r]) : ptx::HighBf16(a[h][r]);
        x = r == 0 ? scalar * products[r][h * (kN / 2) + i] : fmaf(scalar, products[r][h * (kN / 2) + i], x);
      }
      score_[h][i] = x;
    }
  }
}

// Weights times a_V,r, for each rank. Factors of tokens that do not exist become 0: 0 * NaN would spread.
template <class T>
__device__ void RowsConsumer<T>::StoreFactored(int n_tokens) {
  ptx::BarrierWait(shared_.Full(at_.stage), at_.parity);
  const uint32_t stage = shared_.Stage(at_.stage);
  if (n_tokens < 64) ClearRows(stage, max(n_tokens, 0));
  const int token = warp_ * 16 + (lane_ >> 2);
  const uint32_t keep = (token < n_tokens ? 0xffffu : 0u) | (token + 8 < n_tokens ? 0xffff0000u : 0u);
#pragma unroll
  for (int h = 0; h < kH; ++h) {
    uint32_t a[kR];
#pragma unroll
    for (int r = 0; r < kR; ++r) a[r] = TokenFactors(stage, h, r) & keep;
#pragma unroll
    for (int i = 0; i < kN / 8; i += 2) {
      float p[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) p[k] = ptx::Exp2(score_[h][4 * i + k]);
#pragma unroll
      for (int k = 0; k < 4; ++k) sum_[h][2 * i + k] += p[k / 2 * 4 + k % 2] + p[k / 2 * 4 + k % 2 + 2];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const float low = ptx::LowBf16(a[r]), high = ptx::HighBf16(a[r]);
        wgmma::StoreMatricesTransposed(
            FactoredWeights(r) + h * T::kTileBytes + weights_offset_ + i * 1024,
            ptx::PackBf16(p[0] * low, p[1] * low), ptx::PackBf16(p[2] * high, p[3] * high),
            ptx::PackBf16(p[4] * low, p[5] * low), ptx::PackBf16(p[6] * high, p[7] * high));
      }
    }
  }
}
// Every warpgroup for itself: they write the same.
template <class T>
__device__ void RowsConsumer<T>::ClearRows(uint32_t stage, int first) {
  for (int item = warp_ * 32 + lane_; item < kR * (64 - first) * T::kDim / 8; item += 128) {
    const int chunk = item % (T::kDim / 8), row = item / (T::kDim / 8);
    Clear16Bytes(stage + row / (64 - first) * T::kRankBytes + (first + row % (64 - first)) * T::kDim * 2 +
                 chunk * 16);
  }
}

template <class T>
__device__ void RowsConsumer<T>::AccumulateFactored(uint32_t stage) {
  wgmma::Fence();
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma::MmaShared<1, 0>(reinterpret_cast<AllHeads>(out_),
                             wgmma::Tile(stage + r * T::kRankBytes) + step * wgmma::kRowStep,
                             wgmma::Tile(FactoredWeights(r)) + step * wgmma::kColumnStep, 1);
    }
  }
  wgmma::Commit();
}

}  // namespace t6::cuda
