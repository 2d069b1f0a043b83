// Where attention writes: rows of float32, or of bfloat16 where the next product reads them so.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace t6::cuda {

struct AttentionOutput {
  void* data = nullptr;  // [n_rows][h * d]
  bool is_bf16 = false;

#ifdef __CUDACC__
  __device__ void Store(int64_t index, float x) const {
    if (is_bf16) {
      static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16(x);
    } else {
      static_cast<float*>(data)[index] = x;
    }
  }
  // Four columns; `index` is a multiple of four.
  __device__ void Store(int64_t index, float4 x) const {
    if (is_bf16) {
      auto* to = reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(data) + index);
      to[0] = __floats2bfloat162_rn(x.x, x.y), to[1] = __floats2bfloat162_rn(x.z, x.w);
    } else {
      *reinterpret_cast<float4*>(static_cast<float*>(data) + index) = x;
    }
  }
#endif
};

}  // namespace t6::cuda
