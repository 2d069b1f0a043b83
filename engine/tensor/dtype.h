// Element types, and the scalar conversions between them. Rounding is to nearest even; NaN stays NaN.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace t6 {

enum class DType : uint8_t { kF32, kF16, kBF16, kI32, kFp8 };

constexpr size_t SizeOf(DType type) {
  return type == DType::kF32 || type == DType::kI32 ? 4 : type == DType::kFp8 ? 1 : 2;
}

constexpr std::string_view NameOf(DType type) {
  switch (type) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "i32";
    case DType::kFp8:
      return "fp8";
  }
  return "?";
}

// Storage types; arithmetic is done in float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
// e4m3: sign, 4 bits of exponent, 3 of mantissa; up to 448, no infinities.
struct fp8 {
  uint8_t bits;
};

inline float ToFloat(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline bf16 ToBf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}

inline float RoundToBf16(float x) { return ToFloat(ToBf16(x)); }

inline float ToFloat(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1f;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

inline float ToFloat(fp8 x) {
  if ((x.bits & 0x7f) == 0x7f) return std::bit_cast<float>(0x7fc00000u);
  // The same bits as a float32 of an exponent that is 120 too small; its denormals are e4m3's.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80) << 24, rest = (x.bits & 0x7fu) << 20;
  return std::bit_cast<float>(sign | rest) * 0x1p120f;
}

// What is beyond 448 becomes 448.
inline fp8 ToFp8(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x), size = u & 0x7fffffffu;
  const auto sign = static_cast<uint8_t>(u >> 24 & 0x80);
  if (size > 0x7f800000u) return {static_cast<uint8_t>(sign | 0x7f)};
  if (size >= 0x43e80000u) return {static_cast<uint8_t>(sign | 0x7e)};  // 464, half way to what would be next
  if (size < 0x3c800000u) {  // below 2^-6: multiples of 2^-9, rounded by the sum
    const float sum = std::bit_cast<float>(size) + 0x1.8p14f;
    return {static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(sum) & 0xf))};
  }
  return {static_cast<uint8_t>(sign | ((size + 0x7ffffu + ((size >> 20) & 1) - (120u << 23)) >> 20))};
}

}  // namespace t6
