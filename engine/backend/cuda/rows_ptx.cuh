// Instructions that only the rows kernels use, one function each. Device code of sm_90 only.
#pragma once

#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda::ptx {

// Whether a barrier's phase of this parity is over, or was within a moment: asked for early, the answer is
// there when it is needed.
__device__ inline bool BarrierTryWait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Two 8 x 8 matrices of 16-bit numbers, stored by columns: lanes 0 to 15 give their addresses.
__device__ inline void StoreTwoMatricesTransposed(uint32_t address, uint32_t a, uint32_t b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b)
               : "memory");
}

__device__ inline void StoreShared16(uint32_t address, uint16_t x) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(x) : "memory");
}

}  // namespace t6::cuda::ptx
