// What an fp8 page makes of a rank-one term, in float64: slow, obvious, by search over the numbers that e4m3
// has.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace t6::testing {

// The numbers from 0 to 448, by their bits.
inline const std::array<double, 127>& Fp8Numbers() {
  static const std::array<double, 127> numbers = [] {
    std::array<double, 127> x{};
    for (int bits = 0; bits < 127; ++bits) {
      const int exponent = bits / 8, mantissa = bits % 8;
      x[bits] = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    }
    return x;
  }();
  return numbers;
}

// The bits of the number nearest to |x|, the even one of two; 448 for anything larger.
inline int NearestFp8(double x) {
  const auto& numbers = Fp8Numbers();
  const int above =
      static_cast<int>(std::upper_bound(numbers.begin(), numbers.end(), std::abs(x)) - numbers.begin());
  if (above == 127) return 126;
  const double to_lower = std::abs(x) - numbers[above - 1], to_upper = numbers[above] - std::abs(x);
  if (to_lower == to_upper) return above % 2 == 0 ? above : above - 1;
  return to_lower < to_upper ? above - 1 : above;
}

// The power of two that brings the largest of them into (224, 448]; 1 where all are 0.
inline double Fp8Factor(const std::vector<double>& x) {
  double largest = 0.0, factor = 1.0;
  for (const double v : x) largest = std::max(largest, std::abs(v));
  if (largest == 0.0) return 1.0;
  while (largest * factor > 448.0) factor /= 2;
  while (largest * factor <= 224.0) factor *= 2;
  return factor;
}

inline void RoundToFp8(std::vector<double>& x) {
  const double factor = Fp8Factor(x);
  for (double& v : x) v = std::copysign(Fp8Numbers()[NearestFp8(v * factor)] / factor, v);
}

}  // namespace t6::testing
