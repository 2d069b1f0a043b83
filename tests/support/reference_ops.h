// Slow, obvious twins of the engine's operations in float64, one output at a time. Every kernel is held
// against these.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "engine/tensor/dtype.h"

namespace t6::reference {

using Row = std::vector<double>;

inline Row ToRow(const float* x, size_t n) { return Row(x, x + n); }

// x / sqrt(mean(x^2) + eps), times weight where there is one.
inline Row RmsNorm(const Row& x, double eps, const float* weight) {
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  Row out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * (weight != nullptr ? weight[i] : 1.0);
  return out;
}

// What a bfloat16 input row becomes before the product.
inline Row RoundToBf16(const Row& x) {
  Row out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = t6::RoundToBf16(static_cast<float>(x[i]));
  return out;
}

inline double Dot(const Row& x, const Row& w) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * w[i];
  return sum;
}

// Sum of |x_i w_i|: what rounding errors of a product are proportional to.
inline double AbsDot(const Row& x, const Row& w) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += std::abs(x[i] * w[i]);
  return sum;
}

inline double Silu(double x) { return x / (1.0 + std::exp(-x)); }

inline Row LogSoftmax(const float* logits, size_t n) {
  double max = logits[0];
  for (size_t i = 1; i < n; ++i) max = std::max(max, static_cast<double>(logits[i]));
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += std::exp(logits[i] - max);
  Row out(n);
  for (size_t i = 0; i < n; ++i) out[i] = logits[i] - max - std::log(sum);
  return out;
}

}  // namespace t6::reference
