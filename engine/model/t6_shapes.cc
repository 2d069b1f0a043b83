#include "engine/model/t6_shapes.h"

#include <charconv>
#include <cmath>
#include <string_view>

#include "engine/model/model_config.h"

namespace t6 {
namespace {

constexpr std::string_view kLayerPrefix = "transformer.h.";
constexpr std::string_view kHead = "lm_head.weight";

std::string LayerName(int layer, std::string_view rest) {
  return fmt::format("{}{}.{}", kLayerPrefix, layer, rest);
}

std::string Shown(const std::vector<int64_t>& shape) {
  return TensorView{nullptr, DType::kF32, shape}.ShapeString();
}

// The layer number in "transformer.h.12.…"; -1 where there is none.
int LayerOf(std::string_view name) {
  if (!name.starts_with(kLayerPrefix)) return -1;
  name.remove_prefix(kLayerPrefix.size());
  int layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  return error == std::errc() && end != name.data() + name.size() && *end == '.' ? layer : -1;
}

// Rows and columns of a matrix; zeros where it is absent or no matrix of a model's sizes.
struct Matrix {
  int64_t rows = 0, columns = 0;
};

Matrix MatrixOf(const TensorSource& tensors, const std::string& name) {
  const auto view = tensors.Find(name);
  if (!view.ok() || view->shape.size() != 2) return {};
  if (view->shape[0] > kMaxVocab || view->shape[1] > kMaxVocab) return {};
  return {view->shape[0], view->shape[1]};
}

// a / b where that is a whole number from 1 to `most`, else 0.
int Quotient(int64_t a, int64_t b, int most) {
  if (b <= 0 || a <= 0 || a % b != 0 || a / b > most) return 0;
  return static_cast<int>(a / b);
}

int LayerCount(const TensorSource& tensors) {
  int layers = 0;
  for (const std::string& name : tensors.Names()) {
    const int layer = LayerOf(name);
    if (layer >= kMaxLayers) return 0;
    layers = std::max(layers, layer + 1);
  }
  return layers;
}

}  // namespace

int OfficialMlpWidth(int width) { return static_cast<int>(std::floor(8.0 / 3.0 * width)); }

std::map<std::string, std::vector<int64_t>> T6Shapes(const T6Sizes& s) {
  std::map<std::string, std::vector<int64_t>> shapes;
  shapes["transformer.wte.weight"] = {s.vocab_size, s.width};
  for (int i = 0; i < s.n_layers; ++i) {
    const struct {
      char letter;
      int64_t rank;
    } factors[] = {{'q', s.rank_q}, {'k', s.rank_k}, {'v', s.rank_v}};
    for (const auto& [letter, rank] : factors) {
      shapes[LayerName(i, fmt::format("attn.c_qkv.W_A_{}.weight", letter))] = {s.n_heads * rank, s.width};
      shapes[LayerName(i, fmt::format("attn.c_qkv.W_B_{}.weight", letter))] = {s.head_dim * rank, s.width};
    }
    if (s.head_norm) shapes[LayerName(i, "attn.subln.weight")] = {s.head_dim};
    shapes[LayerName(i, "attn.c_proj.weight")] = {s.width, int64_t{s.n_heads} * s.head_dim};
    shapes[LayerName(i, "mlp.c_fc1.weight")] = {s.mlp_width, s.width};
    shapes[LayerName(i, "mlp.c_fc2.weight")] = {s.mlp_width, s.width};
    shapes[LayerName(i, "mlp.c_proj.weight")] = {s.width, s.mlp_width};
  }
  return shapes;
}

std::optional<T6Sizes> SizesFromShapes(const TensorSource& tensors) {
  const auto matrix = [&](std::string_view rest) { return MatrixOf(tensors, LayerName(0, rest)); };
  T6Sizes s;
  s.n_layers = LayerCount(tensors);
  const Matrix wte = MatrixOf(tensors, "transformer.wte.weight");
  s.vocab_size = Quotient(wte.rows, 1, kMaxVocab);
  s.width = Quotient(wte.columns, 1, kMaxWidth);
  s.mlp_width = Quotient(matrix("mlp.c_fc1.weight").rows, 1, 4 * kMaxWidth);
  // W_A_q has h R_Q rows, W_B_q R_Q d, and c_proj h d columns; so the first two over the third is R_Q
  // squared.
  const int64_t a = matrix("attn.c_qkv.W_A_q.weight").rows, b = matrix("attn.c_qkv.W_B_q.weight").rows;
  const int squared = Quotient(a * b, matrix("attn.c_proj.weight").columns, kMaxRank * kMaxRank);
  s.rank_q = static_cast<int>(std::lround(std::sqrt(squared)));
  if (s.rank_q * s.rank_q != squared) return std::nullopt;
  s.n_heads = Quotient(a, s.rank_q, kMaxHeads);
  s.head_dim = Quotient(b, s.rank_q, kMaxHeadDim);
  s.rank_k = Quotient(matrix("attn.c_qkv.W_A_k.weight").rows, s.n_heads, kMaxRank);
  s.rank_v = Quotient(matrix("attn.c_qkv.W_A_v.weight").rows, s.n_heads, kMaxRank);
  s.head_norm = tensors.Find(LayerName(0, "attn.subln.weight")).ok();
  for (const int size : {s.n_layers, s.vocab_size, s.width, s.mlp_width, s.rank_q, s.n_heads, s.head_dim,
                         s.rank_k, s.rank_v}) {
    if (size <= 0) return std::nullopt;
  }
  return s;
}

std::vector<std::string> CompareShapes(const TensorSource& tensors, const T6Sizes& sizes) {
  std::vector<std::string> problems;
  auto expected = T6Shapes(sizes);
  if (tensors.Find(kHead).ok()) expected[std::string(kHead)] = {sizes.vocab_size, sizes.width};
  for (const auto& [name, shape] : expected) {
    const auto view = tensors.Find(name);
    if (absl::IsNotFound(view.status())) {
      problems.push_back(fmt::format("tensor \"{}\" {} is missing", name, Shown(shape)));
    } else if (!view.ok()) {
      problems.emplace_back(MessageOf(view.status()));
    } else if (view->shape != shape) {
      problems.push_back(
          fmt::format("tensor \"{}\" has the shape {}, not {}", name, view->ShapeString(), Shown(shape)));
    }
  }
  for (const std::string& name : tensors.Names()) {
    if (expected.contains(name)) continue;
    const auto view = tensors.Find(name);
    problems.push_back(fmt::format("tensor \"{}\" {} does not belong to a T6 model of {} layers{}", name,
                                   view.ok() ? view->ShapeString() : "", sizes.n_layers,
                                   sizes.head_norm ? "" : " without groupnorm"));
  }
  return problems;
}

}  // namespace t6
