#include "engine/checkpoint/safetensors.h"
#include "tests/engine/checkpoint/tiny_t6.h"
#include "tests/fuzz/fuzz_target.h"

std::string FuzzSeed() { return t6::testing::SafetensorsOf(t6::T6Shapes(t6::testing::TinySizes())); }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto file = t6::FileBytes::FromMemory("fuzz.safetensors", {data, size});
  t6::TensorTable table;
  if (file.ok()) t6::AddSafetensors(*std::move(file), table).IgnoreError();
  return 0;
}
