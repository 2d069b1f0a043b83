// The order in which greedy sampling prefers tokens, as a number. Device code.
#pragma once

#include <cstdint>

namespace t6::cuda {

// Ascending keys are descending logits, and among equals ascending ids. No finite logit's key is 0.
__device__ inline uint64_t KeyOf(float logit, int32_t id) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 becomes 0, its equal
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(~ascending) << 32) | static_cast<uint32_t>(id);
}
__device__ inline int32_t IdOf(uint64_t key) { return static_cast<int32_t>(key); }
__device__ inline float LogitOf(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
  return __uint_as_float((ascending >> 31) != 0 ? ascending & 0x7fffffffu : ~ascending);
}

}  // namespace t6::cuda
