#include "engine/checkpoint/torch_zip.h"
#include "tests/engine/checkpoint/tiny_t6.h"
#include "tests/fuzz/fuzz_target.h"

std::string FuzzSeed() { return t6::testing::BinOf(t6::T6Shapes(t6::testing::TinySizes())); }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto file = t6::FileBytes::FromMemory("fuzz.bin", {data, size});
  t6::TensorTable table;
  if (file.ok()) t6::AddTorchZip(*std::move(file), table).IgnoreError();
  return 0;
}
