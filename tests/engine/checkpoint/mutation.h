// Damage as disks, networks and people do it: flipped bytes and bits, cuts, repeats, numbers that mean "very
// large".
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

namespace t6::testing {

// One to four random changes to `bytes`.
inline std::string Mutated(std::string bytes, std::mt19937_64& random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : static_cast<size_t>(random() % n); };
  for (size_t changes = 1 + below(4); changes > 0; --changes) {
    if (bytes.empty()) return bytes;
    const size_t at = below(bytes.size());
    const size_t run = std::min(bytes.size() - at, 1 + below(32));
    switch (below(7)) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ 1 << below(8));
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.erase(at, run);
        break;
      case 4:
        bytes.insert(below(bytes.size()), bytes.substr(at, run));
        break;
      case 5:
        std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), run, below(2) == 0 ? '\xff' : '\0');
        break;
      case 6:
        std::swap(bytes[at], bytes[below(bytes.size())]);
        break;
    }
  }
  return bytes;
}

}  // namespace t6::testing
