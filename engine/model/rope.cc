#include "engine/model/rope.h"

#include <cmath>
#include <cstddef>

#include "engine/tensor/dtype.h"

namespace t6 {

RopeTable MakeRopeTable(int n_positions, int rotary_dim, float base, bool round_to_bf16) {
  const int half = rotary_dim / 2;
  std::vector<float> inv_freq(half);
  for (int i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    inv_freq[i] = 1.0f / std::pow(base, exponent);
  }
  RopeTable table;
  table.cos.resize(static_cast<size_t>(n_positions) * half);
  table.sin.resize(table.cos.size());
  for (int t = 0; t < n_positions; ++t) {
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(t) * inv_freq[i];
      const float c = std::cos(angle), s = std::sin(angle);
      const size_t at = static_cast<size_t>(t) * half + i;
      table.cos[at] = round_to_bf16 ? RoundToBf16(c) : c;
      table.sin[at] = round_to_bf16 ? RoundToBf16(s) : s;
    }
  }
  return table;
}

}  // namespace t6
