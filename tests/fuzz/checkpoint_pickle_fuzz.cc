#include "engine/checkpoint/pickle.h"
#include "tests/engine/checkpoint/torch_zip_writer.h"
#include "tests/fuzz/fuzz_target.h"

std::string FuzzSeed() {
  using t6::testing::WholeTensor;
  return t6::testing::StateDict({WholeTensor("a", {2, 3}, "0"), WholeTensor("b", {4}, "1")});
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  t6::ReadPickledStateDict({data, size}).status().IgnoreError();
  return 0;
}
