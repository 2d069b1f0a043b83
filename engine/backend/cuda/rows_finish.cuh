// The end of a task of the rows kernel.
#pragma once

#include "engine/backend/cuda/rows_consumer.cuh"

namespace t6::cuda {

// The task's result: the output itself, or a partial one.
template <class T>
__device__ void RowsConsumer<T>::Finish(const RowsTask& task) {
#pragma unroll
  for (int h = 0; h < kH; ++h) {
    float* scratch = shared_.scratch + ((first_head_ + h) * 4 + warp_) * kN + (lane_ & 3) * 2;
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
      float x = sum_[h][2 * i], y = sum_[h][2 * i + 1];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        x += __shfl_xor_sync(~0u, x, lanes), y += __shfl_xor_sync(~0u, y, lanes);
      }
      if (lane_ < 4) *reinterpret_cast<float2*>(scratch + i * 8) = make_float2(x, y);
    }
  }
  Barrier();
  if (task.partial_row >= 0) {
    FinishSums<true>(task);
    Write(task, task.partial_row, [this](int64_t at, float x) { p_.partials.out[at] = x; });
  } else {
    FinishSums<false>(task);
    if (p_.out_is_bf16) {
      auto* out = static_cast<__nv_bfloat16*>(p_.out);
      Write(task, task.row, [out](int64_t at, float x) { out[at] = __float2bfloat16(x); });
    } else {
      auto* out = static_cast<float*>(p_.out);
      Write(task, task.row, [out](int64_t at, float x) { out[at] = x; });
    }
  }
  Barrier();  // scratch and maxima are free again
}

// One thread a column adds its warps' sums: kept beside the maximum, or turned into the output's scale.
template <class T>
template <bool kPartial>
__device__ void RowsConsumer<T>::FinishSums(const RowsTask& task) {
  for (int item = warp_ * 32 + lane_; item < kH * kN; item += 128) {
    const int h = item / kN, column = item % kN, head = task.head + first_head_ + h;
    float* scratch = shared_.scratch + (first_head_ + h) * 4 * kN + column;
    const float total = scratch[0] + scratch[kN] + scratch[2 * kN] + scratch[3 * kN];
    scratch[0] = kPartial ? 1.0f : 1.0f / (total * kR);
    if (kPartial && column < task.n_rows && head < p_.n_heads) {
      const uint32_t pair = shared_.Maxima(first_head_ + h)[column % 8 / 2 * (kN / 8) + column / 8];
      p_.partials.max_sum[static_cast<int64_t>(task.partial_row + column) * p_.n_heads + head] =
          make_float2(column % 2 == 0 ? ptx::LowBf16(pair) : ptx::HighBf16(pair), total);
    }
  }
  Barrier();
}

template <class T>
template <typename Store>
__device__ void RowsConsumer<T>::Write(const RowsTask& task, int first_row, const Store& store) {
  const int column = (lane_ & 3) * 2, k = warp_ * 16 + (lane_ >> 2);
  const int64_t stride = static_cast<int64_t>(p_.n_heads) * T::kDim;
  const int64_t base =
      (first_row + column) * stride + static_cast<int64_t>(task.head + first_head_) * T::kDim + k;
  if (k >= T::kDim) return;
#pragma unroll
  for (int h = 0; h < kH; ++h) {
    if (task.head + first_head_ + h >= p_.n_heads) break;
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (column + 8 * i + e >= task.n_rows) continue;
        const float scale = shared_.scratch[(first_head_ + h) * 4 * kN + column + 8 * i + e];
        const int64_t at = base + (8 * i + e) * stride + h * T::kDim;
#pragma unroll
        for (int tile = 0; tile < T::kTiles; ++tile) {
          store(at + tile * 64, out_[h][tile][4 * i + e] * scale);
          store(at + tile * 64 + 8, out_[h][tile][4 * i + e + 2] * scale);
        }
      }
    }
  }
}

}  // namespace t6::cuda
