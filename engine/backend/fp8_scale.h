// How a rank-one term a b^T gets into an fp8 page (docs/factors.md). A and B are each multiplied by the power
// of two that brings their largest number into (224, 448], and rounded; what undoes both is the term's scale.
// Powers of two cost no rounding, so a page holds exactly what its numbers times their scale are, in bfloat16
// too. The same bits on every device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define T6_HOST_DEVICE __host__ __device__
#else
#define T6_HOST_DEVICE
#endif

namespace t6 {

// Beyond it numbers are cut off at 448 or lost at the bottom: 2^69 and 2^-52 are no factors.
inline constexpr int kFp8MostExponent = 60;
inline constexpr uint32_t kFp8NotFinite = 0x7f800000u;

// `largest`: the greatest |x| of a vector, as the bits of a float32, which order as the numbers do. Not
// finite: 0, and the scale says so.
T6_HOST_DEVICE inline int Fp8Exponent(uint32_t largest) {
  if (largest == 0 || largest >= kFp8NotFinite) return 0;
  const int exponent = static_cast<int>(largest >> 23) - 127;
  const int e = ((largest & 0x7fffffu) <= 0x600000u ? 8 : 7) - exponent;  // 448 = 1.75 * 2^8
  return e > kFp8MostExponent ? kFp8MostExponent : e < -kFp8MostExponent ? -kFp8MostExponent : e;
}

// The bits of 2^e, a float32; |e| <= 2 * kFp8MostExponent.
T6_HOST_DEVICE inline uint32_t PowerOfTwoBits(int e) { return static_cast<uint32_t>(e + 127) << 23; }

// The bits of the scale of a term whose A and B have these largest numbers: NaN where one is not finite.
T6_HOST_DEVICE inline uint32_t Fp8ScaleBits(uint32_t largest_a, uint32_t largest_b) {
  if (largest_a >= kFp8NotFinite || largest_b >= kFp8NotFinite) return 0x7fc00000u;
  return PowerOfTwoBits(-Fp8Exponent(largest_a) - Fp8Exponent(largest_b));
}

}  // namespace t6
