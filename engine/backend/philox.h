// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): random numbers as a function
// of a key and a counter, so that a draw depends on neither the batch, the device nor what was drawn before.
// No state, any thread.
#pragma once

#include <array>
#include <cstdint>

namespace t6 {

inline std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

// The uniform number in [0, 1), of 53 bits, that draws output token `output_index` of a request with this
// seed.
inline double UniformDraw(uint64_t seed, int32_t output_index) {
  const std::array<uint32_t, 4> r =
      Philox4x32({static_cast<uint32_t>(output_index), 0, 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (static_cast<double>(r[0] >> 5) * 0x1p26 + static_cast<double>(r[1] >> 6)) * 0x1p-53;
}

}  // namespace t6
