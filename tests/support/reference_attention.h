// Attention in scalar float64, from factors to output, for one sequence: slow, obvious, and what every kernel
// is held against. Forms full Q, K and V from the projections; knows no pages, splits or masks.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "engine/backend/attention_spec.h"

namespace t6::testing {

struct ReferenceAttention {
  AttentionSpec spec;
  std::vector<float> cos, sin;          // [positions, rotary_dim / 2]
  std::vector<float> head_norm_weight;  // [d] when spec.head_norm
  // What the cache does to the vectors of a rank-one term, A's column [h] or B's row [d]: nothing, or it
  // rounds them.
  using Keep = std::function<void(std::vector<double>&)>;
  Keep store = [](std::vector<double>&) {};

  // y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos over the two halves of rotary_dim.
  std::vector<double> Rotated(const float* x, int position) const {
    const int half = spec.rotary_dim / 2;
    std::vector<double> y(x, x + spec.head_dim);
    for (int i = 0; i < half; ++i) {
      const double c = cos[position * half + i], s = sin[position * half + i];
      y[i] = x[i] * c + x[half + i] * s;
      y[half + i] = -x[i] * s + x[half + i] * c;
    }
    return y;
  }

  // The same in float32, as every store computes it before it rounds to what the cache keeps: one that lies
  // half way between two bfloat16 would else be rounded the other way here.
  std::vector<double> RotatedInF32(const float* x, int position) const {
    const int half = spec.rotary_dim / 2;
    std::vector<double> y(x, x + spec.head_dim);
    for (int i = 0; i < half; ++i) {
      const float c = cos[position * half + i], s = sin[position * half + i];
      const float sum = x[i] * c + x[half + i] * s, difference = x[half + i] * c - x[i] * s;
      y[i] = sum, y[half + i] = difference;
    }
    return y;
  }

  // [h][d] of A [h, rank] and B [rank, d], divided by the rank; `keep` is what happens to each vector first.
  enum class Rotate { kNot, kExactly, kInF32 };
  std::vector<double> Expanded(const float* a, const float* b, int rank, int position, Rotate rotate,
                               const Keep& keep) const {
    const int h = spec.n_heads, d = spec.head_dim;
    std::vector<double> out(static_cast<size_t>(h) * d, 0.0);
    for (int r = 0; r < rank; ++r) {
      const float* x = b + r * d;
      std::vector<double> row = rotate == Rotate::kNot       ? std::vector<double>(x, x + d)
                                : rotate == Rotate::kExactly ? Rotated(x, position)
                                                             : RotatedInF32(x, position);
      std::vector<double> column(h);
      for (int j = 0; j < h; ++j) column[j] = a[j * rank + r];
      keep(row), keep(column);
      for (int j = 0; j < h; ++j) {
        for (int i = 0; i < d; ++i) out[j * d + i] += column[j] * row[i] / rank;
      }
    }
    return out;
  }

  // One position's Q, K and V, [h][d] each, from its projections [spec.qkv_elements()].
  struct Token {
    std::vector<double> q, k, v;
  };
  Token Form(const std::vector<float>& qkv, int position) const {
    const int h = spec.n_heads, d = spec.head_dim;
    const auto exact = [](std::vector<double>&) {};
    Token token;
    if (spec.full_query) {
      for (int j = 0; j < h; ++j) {
        const std::vector<double> head = Rotated(qkv.data() + j * d, position);
        token.q.insert(token.q.end(), head.begin(), head.end());
      }
    } else {
      token.q =
          Expanded(qkv.data(), qkv.data() + h * spec.q.rank, spec.q.rank, position, Rotate::kExactly, exact);
    }
    const float* keys = qkv.data() + spec.q_elements();
    const float* values = keys + spec.k_elements();
    token.k = Expanded(keys, keys + h * spec.k.rank, spec.k.rank, position, Rotate::kInF32, store);
    token.v = Expanded(values, values + h * spec.v.rank, spec.v.rank, position, Rotate::kNot, store);
    return token;
  }

  // The output [h][d] at `position`, which attends to positions 0..position. `norms` gets for every head how
  // much its largest column errs for each unit of relative rounding: weights and values give sum p |v|; a
  // logit whose terms are rounded errs by l = |q_i k_i|_2, and to first order the output by sum p |v| (l +
  // mean l).
  std::vector<double> Output(const std::vector<Token>& tokens, int position,
                             std::vector<double>* norms) const {
    const int h = spec.n_heads, d = spec.head_dim, n = position + 1;
    const double scale = 1.0 / std::sqrt(static_cast<double>(d));
    const std::vector<double>& q = tokens[position].q;
    std::vector<double> out(static_cast<size_t>(h) * d, 0.0);
    norms->assign(h, 0.0);
    for (int j = 0; j < h; ++j) {
      std::vector<double> logits(n, 0.0), errors(n, 0.0), size(d, 0.0);
      double most = -INFINITY, total = 0.0, mean_error = 0.0;
      for (int t = 0; t < n; ++t) {
        for (int i = 0; i < d; ++i) {
          const double term = q[j * d + i] * tokens[t].k[j * d + i] * scale;
          logits[t] += term;
          errors[t] += term * term;
        }
        errors[t] = std::sqrt(errors[t]);
        most = std::max(most, logits[t]);
      }
      for (int t = 0; t < n; ++t) total += std::exp(logits[t] - most);
      for (int t = 0; t < n; ++t) mean_error += std::exp(logits[t] - most) / total * errors[t];
      for (int t = 0; t < n; ++t) {
        const double p = std::exp(logits[t] - most) / total;
        for (int i = 0; i < d; ++i) {
          out[j * d + i] += p * tokens[t].v[j * d + i];
          size[i] += p * std::abs(tokens[t].v[j * d + i]) * (1.0 + errors[t] + mean_error);
        }
      }
      double factor = 1.0;
      if (spec.head_norm) {
        double squares = 0.0;
        for (int i = 0; i < d; ++i) squares += out[j * d + i] * out[j * d + i];
        factor = 1.0 / std::sqrt(squares / d + spec.head_norm_eps);
        for (int i = 0; i < d; ++i) out[j * d + i] *= factor * head_norm_weight[i];
      }
      for (int i = 0; i < d; ++i) (*norms)[j] = std::max((*norms)[j], size[i] * factor);
    }
    return out;
  }
};

}  // namespace t6::testing
