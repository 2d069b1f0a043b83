// Documents that were never written, of plain sentences about made-up things, and questions about them. Pure
// functions of the seed. Documents differ from their first sentence on, so that only the instruction is
// shared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace t6::cli {

struct SyntheticDocument {
  std::string text;
  std::vector<std::string> questions;
};

// At least `words` words (and at most a sentence more), and `questions` different questions.
SyntheticDocument MakeDocument(uint64_t seed, int number, int words, int questions);

}  // namespace t6::cli
