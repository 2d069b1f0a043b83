// Numbers that blocks hand to each other while they run, without meeting. A place that nobody has written
// holds a NaN that no arithmetic makes; whoever needs a number looks until it is another. So a number is its
// own signal: no fence, no counter, no second look-up. Device code.
#pragma once

#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {

// Of bfloat16 and of float32: all bits set. The arithmetic's own NaN are 0x7fff and 0x7fffffff, also where an
// operand is this one.
inline constexpr uint32_t kAbsent = 0xffffffffu;

#if T6_PTX_HAS_SM90
// From the second-level cache, where all blocks see the same.
__device__ inline uint4 LookAt16Bytes(const void* p) {
  uint4 x;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p)
               : "memory");
  return x;
}
// Where it is wanted; without a branch.
__device__ inline void LookAt16Bytes(uint4& x, const void* p, bool wanted) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %5, 0;\n"
      "@wanted ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w)
      : "l"(p), "r"(static_cast<uint32_t>(wanted))
      : "memory");
}
__device__ inline float LookAt(const float* p) {
  float x;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(x) : "l"(p) : "memory");
  return x;
}
__device__ inline float2 LookAt(const float2* p) {
  float2 x;
  asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(p) : "memory");
  return x;
}
__device__ inline float4 LookAt(const float4* p) {
  float4 x;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(p)
               : "memory");
  return x;
}
__device__ inline void HandOver(float* p, float x) {
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(p), "f"(x) : "memory");
}
__device__ inline void HandOver(__nv_bfloat16* p, __nv_bfloat16 x) {
  asm volatile("st.relaxed.gpu.global.b16 [%0], %1;" ::"l"(p), "h"(__bfloat16_as_ushort(x)) : "memory");
}
__device__ inline void HandOver(float2* p, float2 x) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x.x), "f"(x.y) : "memory");
}
__device__ inline void HandOver(float4* p, float4 x) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(x.x), "f"(x.y), "f"(x.z),
               "f"(x.w)
               : "memory");
}
__device__ inline bool IsAbsent(float x) { return __float_as_uint(x) == kAbsent; }
__device__ inline bool AnyAbsent(float2 x) { return IsAbsent(x.x) || IsAbsent(x.y); }
__device__ inline bool AnyAbsent(const float4& x) {
  return IsAbsent(x.x) || IsAbsent(x.y) || IsAbsent(x.z) || IsAbsent(x.w);
}
// Whether one of eight bfloat16 is: a half of a word is all ones where adding one to it carries out of it.
__device__ inline bool AnyAbsent(const uint4& x) {
  const auto ones = [](uint32_t w) { return w & ~(w + 0x00010001u); };
  return ((ones(x.x) | ones(x.y) | ones(x.z) | ones(x.w)) & 0x80008000u) != 0;
}

// Makes a run of places absent: this thread's share among n.
__device__ inline void Clear(uint4* places, int n_places, int thread, int n_threads) {
  for (int i = thread; i < n_places; i += n_threads)
    places[i] = make_uint4(kAbsent, kAbsent, kAbsent, kAbsent);
}
#endif

}  // namespace t6::cuda
