// Rotary tables exactly as the official code makes them (docs/factors.md): inv_freq = 1 / powf(base,
// 2i/rotary_dim), angle = t * inv_freq, all in float32 in this order; then cosf and sinf, rounded to bfloat16
// where the variant says so.
#pragma once

#include <vector>

namespace t6 {

struct RopeTable {
  std::vector<float> cos;  // [n_positions, rotary_dim / 2]
  std::vector<float> sin;  // [n_positions, rotary_dim / 2]
};

RopeTable MakeRopeTable(int n_positions, int rotary_dim, float base, bool round_to_bf16);

}  // namespace t6
