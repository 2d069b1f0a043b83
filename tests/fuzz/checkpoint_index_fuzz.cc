// Any bytes as the index of two whole shards: a checkpoint with every tensor of both, or an error that begins
// with a file's path.
#include "engine/base/check.h"
#include "engine/checkpoint/tensor_source.h"
#include "tests/engine/checkpoint/tiny_t6.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/temporary_folder.h"

namespace {

constexpr char kShards[2][40] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};

t6::testing::Shapes ShapesOf(int shard) {
  t6::testing::Shapes half;
  int i = 0;
  for (const auto& [name, shape] : t6::T6Shapes(t6::testing::TinySizes())) {
    if (i++ % 2 == shard) half[name] = shape;
  }
  return half;
}

}  // namespace

std::string FuzzSeed() {
  std::string map;
  for (int shard : {0, 1}) {
    for (const auto& [name, shape] : ShapesOf(shard)) {
      map += fmt::format(R"({}"{}": "{}")", map.empty() ? "" : ", ", name, kShards[shard]);
    }
  }
  return R"({"metadata": {"total_size": 4096}, "weight_map": {)" + map + "}}";
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const t6::testing::TemporaryFolder* const folder = [] {
    auto* made = new t6::testing::TemporaryFolder;
    for (int shard : {0, 1}) made->Write(kShards[shard], t6::testing::SafetensorsOf(ShapesOf(shard)));
    return made;
  }();
  folder->Write("model.safetensors.index.json", std::string(reinterpret_cast<const char*>(data), size));
  const auto source = t6::OpenCheckpoint(folder->path());
  if (source.ok()) {
    T6_CHECK((*source)->Names().size() == t6::T6Shapes(t6::testing::TinySizes()).size());
  } else {
    T6_CHECK(t6::MessageOf(source.status()).starts_with(folder->path().string()), "{}",
             t6::MessageOf(source.status()));
  }
  return 0;
}
