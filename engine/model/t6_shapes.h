// Which tensors a T6 checkpoint has, and of which shapes: from sizes to shapes and back. Host integers only.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/checkpoint/tensor_source.h"

namespace t6 {

struct T6Sizes {
  int vocab_size = 0, n_layers = 0, width = 0, mlp_width = 0, n_heads = 0, head_dim = 0;
  int rank_q = 0, rank_k = 0, rank_v = 0;
  bool head_norm = false;  // subln

  bool operator==(const T6Sizes&) const = default;
};

// The hidden width that the official code gives its SwiGLU: floor(8/3 width).
int OfficialMlpWidth(int width);

// Name -> shape of every tensor, without lm_head.weight, which a checkpoint may leave out.
std::map<std::string, std::vector<int64_t>> T6Shapes(const T6Sizes& sizes);

// The sizes that the tensors' names and the shapes of layer 0 tell; nothing where they contradict each other.
std::optional<T6Sizes> SizesFromShapes(const TensorSource& tensors);

// One line for each tensor that is missing, surplus or of another shape.
std::vector<std::string> CompareShapes(const TensorSource& tensors, const T6Sizes& sizes);

}  // namespace t6
