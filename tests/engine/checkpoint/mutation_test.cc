// Whatever is done to a checkpoint's files, it loads to finite sizes or is refused with a message.
#include "tests/engine/checkpoint/mutation.h"

#include <gtest/gtest.h>

#include "engine/checkpoint/pickle.h"
#include "engine/model/model_spec.h"
#include "tests/engine/checkpoint/tiny_t6.h"
#include "tests/support/temporary_folder.h"

namespace t6 {
namespace {

// Opens the folder, reads the spec, touches every byte. False when it was refused, with a message.
bool Loads(const testing::TemporaryFolder& folder) {
  const auto source = OpenCheckpoint(folder.path());
  EXPECT_TRUE(source.ok() || !source.status().message().empty());
  if (!source.ok()) return false;
  uint64_t bytes = 0, sum = 0;
  for (const std::string& name : (*source)->Names()) {
    const TensorView view = *(*source)->Find(name);
    bytes += view.n_bytes();
    for (size_t i = 0; i < view.n_bytes(); ++i) sum += static_cast<const uint8_t*>(view.data)[i];
  }
  EXPECT_LT(bytes, 1u << 20);
  EXPECT_LE(sum, bytes * 255);
  const auto spec = ReadModelSpec(folder.path(), **source, {});
  EXPECT_TRUE(spec.ok() || !spec.status().message().empty());
  if (!spec.ok()) return false;
  EXPECT_GT(spec->block_size, 0);
  EXPECT_EQ(spec->attention.n_heads, 2);
  return true;
}

TEST(Mutation, OfATorchZip) {
  std::mt19937_64 random(3);
  const std::string whole = testing::BinOf(T6Shapes(testing::TinySizes()));
  const testing::TemporaryFolder folder;
  folder.Write("config.json", testing::TinyConfig());
  folder.Write("pytorch_model.bin", whole);
  ASSERT_TRUE(Loads(folder));
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    folder.Write("pytorch_model.bin", testing::Mutated(whole, random));
    refused += !Loads(folder);
  }
  EXPECT_GT(refused, 200);
}

// Of the pickle alone, under a CRC that is right again: what a hostile author would send.
TEST(Mutation, OfAPickleUnderARightCrc) {
  std::mt19937_64 random(4);
  const auto shapes = T6Shapes(testing::TinySizes());
  std::vector<testing::TensorSpec> tensors;
  std::vector<std::string> storages;
  for (const auto& [name, shape] : shapes) {
    tensors.push_back(testing::WholeTensor(name, shape, std::to_string(storages.size())));
    storages.push_back(std::string(testing::CountOf(shape) * 4, 'x'));
  }
  const std::string whole = testing::StateDict(tensors);
  const testing::TemporaryFolder folder;
  folder.Write("config.json", testing::TinyConfig());
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    const std::string pickle = testing::Mutated(whole, random);
    folder.Write("pytorch_model.bin", testing::WriteZip(testing::TorchMembers(pickle, storages)));
    refused += !Loads(folder);
  }
  EXPECT_GT(refused, 200);
}

TEST(Mutation, OfASafetensorsFile) {
  std::mt19937_64 random(5);
  const std::string whole = testing::SafetensorsOf(T6Shapes(testing::TinySizes()));
  const testing::TemporaryFolder folder;
  folder.Write("config.json", testing::TinyConfig());
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    folder.Write("model.safetensors", testing::Mutated(whole, random));
    refused += !Loads(folder);
  }
  EXPECT_GT(refused, 100);  // a changed weight is still a weight
}

TEST(Mutation, OfAShardIndexAndOfConfigs) {
  std::mt19937_64 random(6);
  const auto shapes = T6Shapes(testing::TinySizes());
  std::string map;
  for (const auto& [name, shape] : shapes)
    map += (map.empty() ? "\"" : ",\"") + name + "\":\"all.safetensors\"";
  const std::string index = "{\"weight_map\":{" + map + "}}";
  const std::string config = testing::TinyConfig();
  const std::string generation = R"({"temperature": 0.5, "top_k": 7, "eos_token_id": [4, 0]})";
  const testing::TemporaryFolder folder;
  folder.Write("all.safetensors", testing::SafetensorsOf(shapes));
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    folder.Write("model.safetensors.index.json", i % 3 == 0 ? testing::Mutated(index, random) : index);
    folder.Write("config.json", i % 3 == 1 ? testing::Mutated(config, random) : config);
    folder.Write("generation_config.json", i % 3 == 2 ? testing::Mutated(generation, random) : generation);
    refused += !Loads(folder);
  }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace t6
