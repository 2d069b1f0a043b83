// The model of a benchmark of whole steps: a checkpoint, or T6-XL (48 layers, 78 heads of 64, width 1600,
// vocabulary 50304) with random weights.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/checkpoint/tensor_source.h"
#include "engine/model/model_spec.h"
#include "engine/model/t6_shapes.h"

namespace t6::bench {

inline ModelSpec XlSpec() {
  ModelSpec spec;
  spec.variant = "T6";
  spec.vocab_size = 50304, spec.n_layers = 48, spec.width = 1600, spec.block_size = 1024;
  spec.mlp_width = OfficialMlpWidth(spec.width);
  AttentionSpec& a = spec.attention;
  a.n_heads = 78, a.head_dim = a.rotary_dim = 64;
  a.q.rank = 6, a.k.rank = a.v.rank = 2;
  return spec;
}

// Every tensor is a window on one buffer of random numbers.
class RandomWeights final : public TensorSource {
 public:
  explicit RandomWeights(const ModelSpec& spec) : numbers_(kNumbers) {
    uint64_t state = 1;
    for (bf16& x : numbers_) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      // Uniform of deviation 0.02, as weights are initialised.
      x = ToBf16((static_cast<float>(state >> 40) / (1 << 24) - 0.5f) * 0.07f);
    }
    const AttentionSpec& a = spec.attention;
    shapes_ = T6Shapes({.vocab_size = spec.vocab_size,
                        .n_layers = spec.n_layers,
                        .width = spec.width,
                        .mlp_width = spec.mlp_width,
                        .n_heads = a.n_heads,
                        .head_dim = a.head_dim,
                        .rank_q = a.q.rank,
                        .rank_k = a.k.rank,
                        .rank_v = a.v.rank});
  }
  std::vector<std::string> Names() const override { return {}; }
  StatusOr<TensorView> Find(std::string_view name) const override {
    const auto at = shapes_.find(std::string(name));
    if (at == shapes_.end()) return NotFound("no tensor {}", name);
    TensorView view{nullptr, DType::kBF16, at->second};
    const size_t room = kNumbers - static_cast<size_t>(view.n_elements());
    view.data = numbers_.data() + std::hash<std::string_view>()(name) % room;
    return view;
  }
  int64_t n_parameters() const {
    int64_t n = 0;
    for (const auto& [name, shape] : shapes_) n += shape[0] * (shape.size() > 1 ? shape[1] : 1);
    return n;
  }

 private:
  static constexpr size_t kNumbers = size_t{128} << 20;
  std::vector<bf16> numbers_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

struct BenchModel {
  ModelSpec spec;
  std::unique_ptr<TensorSource> tensors;
};

inline BenchModel XlModel() {
  BenchModel model{.spec = XlSpec(), .tensors = nullptr};
  auto weights = std::make_unique<RandomWeights>(model.spec);
  model.spec.n_parameters = weights->n_parameters();
  model.tensors = std::move(weights);
  return model;
}

inline StatusOr<BenchModel> OpenModel(const std::string& directory) {
  BenchModel model;
  T6_ASSIGN_OR_RETURN(model.tensors, OpenCheckpoint(directory));
  T6_ASSIGN_OR_RETURN(model.spec, ReadModelSpec(directory, *model.tensors, {}));
  return model;
}

}  // namespace t6::bench
