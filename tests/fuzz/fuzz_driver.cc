// A main for fuzz targets where libFuzzer is not there: runs the seed, then N random mutations of it.
// Usage: TARGET [N [SEED]], or TARGET FILE ... to replay inputs.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/engine/checkpoint/mutation.h"
#include "tests/fuzz/fuzz_target.h"

// For targets that have no seed of their own.
__attribute__((weak)) std::string FuzzSeed() { return "{}"; }

namespace {

void RunOne(const std::string& input) {
  // A copy of exactly that size on the heap, so that a sanitizer sees the first byte read beyond it.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

bool IsNumber(const std::string& text) { return text.find_first_not_of("0123456789") == std::string::npos; }

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !IsNumber(argv[1])) {
    for (int i = 1; i < argc; ++i) {
      std::ifstream in(argv[i], std::ios::binary);
      RunOne({std::istreambuf_iterator<char>(in), {}});
    }
    return 0;
  }
  const long runs = argc > 1 ? std::atol(argv[1]) : 1000;
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  const std::string seed = FuzzSeed();
  RunOne(seed);
  for (long i = 0; i < runs; ++i) RunOne(t6::testing::Mutated(seed, random));
  std::printf("%ld mutations\n", runs);
}
