// The whole model in scalar float64, written from docs/factors.md and nothing else: slow, obvious, and what
// the real one is held against. Builds full Q, K and V; knows no pages, no batches and no cache.
#pragma once

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/checkpoint/tensor_source.h"
#include "engine/model/model_spec.h"
#include "engine/model/rope.h"

namespace t6::testing {

// Weights in memory, for tests that need no file.
class MemoryTensors final : public TensorSource {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape, std::vector<float> values) {
    tensors_[name] = {std::move(shape), std::move(values)};
  }
  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }
  StatusOr<TensorView> Find(std::string_view name) const override {
    const auto it = tensors_.find(std::string(name));
    if (it == tensors_.end()) return NotFound("no tensor {}", name);
    return TensorView{it->second.second.data(), DType::kF32, it->second.first};
  }

 private:
  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>> tensors_;
};

// Random weights for `spec`, large enough that attention and the MLP matter.
inline MemoryTensors RandomTensors(const ModelSpec& spec, uint32_t seed) {
  std::mt19937 random(seed);
  MemoryTensors tensors;
  const auto add = [&](const std::string& name, int64_t n, int64_t k, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> values(n * k);
    for (float& v : values) v = normal(random);
    tensors.Add(name, {n, k}, std::move(values));
  };
  const AttentionSpec& a = spec.attention;
  const float in = 1.0f / std::sqrt(static_cast<float>(spec.width));
  add("transformer.wte.weight", spec.vocab_size, spec.width, 1.0f);
  for (int i = 0; i < spec.n_layers; ++i) {
    const std::string p = "transformer.h." + std::to_string(i) + ".";
    add(p + "attn.c_qkv.W_A_q.weight", a.n_heads * a.q.rank, spec.width, 2 * in);
    add(p + "attn.c_qkv.W_B_q.weight", a.head_dim * a.q.rank, spec.width, 2 * in);
    add(p + "attn.c_qkv.W_A_k.weight", a.n_heads * a.k.rank, spec.width, 2 * in);
    add(p + "attn.c_qkv.W_B_k.weight", a.head_dim * a.k.rank, spec.width, 2 * in);
    add(p + "attn.c_qkv.W_A_v.weight", a.n_heads * a.v.rank, spec.width, in);
    add(p + "attn.c_qkv.W_B_v.weight", a.head_dim * a.v.rank, spec.width, in);
    add(p + "attn.c_proj.weight", spec.width, a.n_heads * a.head_dim, 0.3f * in);
    add(p + "mlp.c_fc1.weight", spec.mlp_width, spec.width, in);
    add(p + "mlp.c_fc2.weight", spec.mlp_width, spec.width, in);
    add(p + "mlp.c_proj.weight", spec.width, spec.mlp_width, in);
    if (a.head_norm) {
      std::vector<float> weight(a.head_dim);
      for (float& w : weight) w = 0.5f + 0.001f * static_cast<float>(random() % 1000);
      tensors.Add(p + "attn.subln.weight", {a.head_dim}, std::move(weight));
    }
  }
  return tensors;
}

class ReferenceModel {
 public:
  using Vector = std::vector<double>;

  ReferenceModel(const ModelSpec& spec, const TensorSource& tensors)
      : spec_(spec),
        tensors_(tensors),
        rope_(MakeRopeTable(spec.block_size, spec.attention.rotary_dim, spec.rope_base, spec.rope_bf16)) {}

  // Logits after every token: [n][vocab].
  std::vector<Vector> Logits(const std::vector<int32_t>& tokens) const {
    std::vector<Vector> x;
    const Matrix table = Load("transformer.wte.weight");
    for (int32_t id : tokens) x.push_back(table.Row(id));
    for (int layer = 0; layer < spec_.n_layers; ++layer) {
      const std::string p = "transformer.h." + std::to_string(layer) + ".";
      const std::vector<Vector> attended = Attention(p, Norm(x));
      Add(attended, x);
      Add(Mlp(p, Norm(x)), x);
    }
    const Matrix head = spec_.tied_head ? table : Load("lm_head.weight");
    std::vector<Vector> logits;
    for (const Vector& row : Norm(x)) logits.push_back(head.Times(row));
    return logits;
  }

 private:
  struct Matrix {
    int64_t n, k;
    std::vector<float> values;
    Vector Row(int64_t i) const { return Vector(values.begin() + i * k, values.begin() + (i + 1) * k); }
    Vector Times(const Vector& x) const {
      Vector y(n, 0.0);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < k; ++j) y[i] += static_cast<double>(values[i * k + j]) * x[j];
      }
      return y;
    }
  };

  Matrix Load(const std::string& name) const {
    const StatusOr<TensorView> view = tensors_.Find(name);
    T6_CHECK(view.ok(), "{}", name);
    Matrix m{view->shape[0], view->shape.size() > 1 ? view->shape[1] : 1, {}};
    m.values.resize(view->n_elements());
    ConvertToFloat(view->data, view->dtype, view->n_elements(), m.values.data());
    return m;
  }

  static void Add(const std::vector<Vector>& what, std::vector<Vector>& to) {
    for (size_t t = 0; t < to.size(); ++t) {
      for (size_t i = 0; i < to[t].size(); ++i) to[t][i] += what[t][i];
    }
  }

  std::vector<Vector> Norm(const std::vector<Vector>& x) const {
    std::vector<Vector> y = x;
    for (Vector& row : y) {
      double squares = 0;
      for (double v : row) squares += v * v;
      for (double& v : row) v /= std::sqrt(squares / static_cast<double>(row.size()) + spec_.norm_eps);
    }
    return y;
  }

  // A B / R with A [h, R], B [R, d]: one token's Q, K or V, [h * d]; B rotated when `rotate`.
  Vector Expand(const Vector& a, Vector b, int rank, int position, bool rotate) const {
    const int h = spec_.attention.n_heads, d = spec_.attention.head_dim,
              half = spec_.attention.rotary_dim / 2;
    for (int r = 0; rotate && r < rank; ++r) {
      for (int i = 0; i < half; ++i) {
        const double c = rope_.cos[position * half + i], s = rope_.sin[position * half + i];
        double &x1 = b[r * d + i], &x2 = b[r * d + half + i];
        const double y1 = x1 * c + x2 * s, y2 = -x1 * s + x2 * c;
        x1 = y1, x2 = y2;
      }
    }
    Vector out(h * d, 0.0);
    for (int j = 0; j < h; ++j) {
      for (int r = 0; r < rank; ++r) {
        for (int i = 0; i < d; ++i) out[j * d + i] += a[j * rank + r] * b[r * d + i] / rank;
      }
    }
    return out;
  }

  std::vector<Vector> Attention(const std::string& p, const std::vector<Vector>& x) const {
    const AttentionSpec& a = spec_.attention;
    const int h = a.n_heads, d = a.head_dim;
    const auto form = [&](const char* letter, int rank, bool rotate) {
      const Matrix wa = Load(p + "attn.c_qkv.W_A_" + letter + ".weight");
      const Matrix wb = Load(p + "attn.c_qkv.W_B_" + letter + ".weight");
      std::vector<Vector> out;
      for (size_t t = 0; t < x.size(); ++t) {
        out.push_back(Expand(wa.Times(x[t]), wb.Times(x[t]), rank, static_cast<int>(t), rotate));
      }
      return out;
    };
    const auto q = form("q", a.q.rank, true), k = form("k", a.k.rank, true), v = form("v", a.v.rank, false);
    const Matrix wo = Load(p + "attn.c_proj.weight");
    std::vector<Vector> out;
    for (size_t t = 0; t < x.size(); ++t) {
      Vector joined(h * d, 0.0);
      for (int j = 0; j < h; ++j) {
        Vector weights(t + 1);
        double sum = 0, largest = -1e300;
        for (size_t s = 0; s <= t; ++s) {
          for (int i = 0; i < d; ++i) weights[s] += q[t][j * d + i] * k[s][j * d + i];
          weights[s] /= std::sqrt(static_cast<double>(d));
          largest = std::max(largest, weights[s]);
        }
        for (double& w : weights) sum += w = std::exp(w - largest);
        for (size_t s = 0; s <= t; ++s) {
          for (int i = 0; i < d; ++i) joined[j * d + i] += weights[s] / sum * v[s][j * d + i];
        }
        if (a.head_norm) HeadNorm(Load(p + "attn.subln.weight"), &joined[j * d]);
      }
      out.push_back(wo.Times(joined));
    }
    return out;
  }

  void HeadNorm(const Matrix& weight, double* head) const {
    const int d = spec_.attention.head_dim;
    double squares = 0;
    for (int i = 0; i < d; ++i) squares += head[i] * head[i];
    for (int i = 0; i < d; ++i) {
      head[i] *= weight.values[i] / std::sqrt(squares / d + spec_.attention.head_norm_eps);
    }
  }

  std::vector<Vector> Mlp(const std::string& p, const std::vector<Vector>& x) const {
    const Matrix fc1 = Load(p + "mlp.c_fc1.weight"), fc2 = Load(p + "mlp.c_fc2.weight");
    const Matrix proj = Load(p + "mlp.c_proj.weight");
    std::vector<Vector> out;
    for (const Vector& row : x) {
      const Vector gate = fc1.Times(row), up = fc2.Times(row);
      Vector hidden(gate.size());
      for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      out.push_back(proj.Times(hidden));
    }
    return out;
  }

  ModelSpec spec_;
  const TensorSource& tensors_;
  RopeTable rope_;
};

inline ReferenceModel::Vector LogSoftmax(const ReferenceModel::Vector& logits) {
  double largest = -1e300, sum = 0;
  for (double v : logits) largest = std::max(largest, v);
  for (double v : logits) sum += std::exp(v - largest);
  ReferenceModel::Vector out = logits;
  for (double& v : out) v -= largest + std::log(sum);
  return out;
}

}  // namespace t6::testing
