#include "engine/checkpoint/safetensors.h"
#include "engine/model/model_spec.h"
#include "tests/engine/checkpoint/tiny_t6.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/temporary_folder.h"

std::string FuzzSeed() { return t6::testing::TinyConfig(); }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const t6::testing::TemporaryFolder folder;
  static const t6::TensorTable* const tensors = [] {
    auto* table = new t6::TensorTable;
    const std::string file = t6::testing::SafetensorsOf(t6::T6Shapes(t6::testing::TinySizes()));
    auto bytes = t6::FileBytes::FromMemory("tiny.safetensors", t6::testing::BytesOf(file));
    t6::AddSafetensors(*std::move(bytes), *table).IgnoreError();
    return table;
  }();
  folder.Write("config.json", std::string(reinterpret_cast<const char*>(data), size));
  t6::ReadModelSpec(folder.path(), *tensors, {}).status().IgnoreError();
  return 0;
}
