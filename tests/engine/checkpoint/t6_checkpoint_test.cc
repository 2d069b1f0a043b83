// The tool t6-checkpoint, as it is called: info, convert, make.
#include <gmock/gmock.h>
#include <sys/wait.h>

#include "engine/checkpoint/tensor_source.h"
#include "engine/model/model_spec.h"
#include "tests/engine/checkpoint/tiny_t6.h"
#include "tests/support/temporary_folder.h"

namespace t6 {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ReadWhole;
using testing::TemporaryFolder;

struct Outcome {
  int status;
  std::string text;  // of both outputs
};

class Tool : public ::testing::Test {
 protected:
  Outcome Run(const std::string& arguments) {
    const fs::path output = folder_.path() / "output";
    const int status =
        std::system(fmt::format("{} {} >{} 2>&1", T6_CHECKPOINT_PROGRAM, arguments, output.string()).c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadWhole(output)};
  }
  std::string Path(const std::string& name) const { return (folder_.path() / name).string(); }
  // A tiny official checkpoint at Path(name).
  void WriteSource(const std::string& name, const testing::Shapes& shapes) {
    fs::create_directory(Path(name));
    folder_.Write(name + "/pytorch_model.bin", testing::BinOf(shapes, 0.7f));
    folder_.Write(name + "/config.json", testing::TinyConfig());
    folder_.Write(name + "/tokenizer.json", "{\"a\": 1}");
  }
  static testing::Shapes Shapes() {
    auto shapes = T6Shapes(testing::TinySizes());
    shapes["lm_head.weight"] = shapes["transformer.wte.weight"];
    return shapes;
  }

  TemporaryFolder folder_;
};

TEST_F(Tool, ExitsWithTwoWhenItIsUsedWrongly) {
  EXPECT_EQ(Run("").status, 2);
  EXPECT_THAT(Run("explode").text, HasSubstr("unknown command \"explode\""));
  EXPECT_EQ(Run("explode").status, 2);
  EXPECT_EQ(Run("info").status, 2);
  EXPECT_EQ(Run("info a b").status, 2);
  EXPECT_EQ(Run("info --tensor a").status, 2);
  EXPECT_EQ(Run("make --dtype int8 " + Path("x")).status, 2);
  EXPECT_EQ(Run("make --layers 0 " + Path("x")).status, 2);
  EXPECT_EQ(Run("make --max-shard-bytes 5XB " + Path("x")).status, 2);
  EXPECT_THAT(Run("make --preset huge " + Path("x")).text, AllOf(HasSubstr("\"huge\""), HasSubstr("xl")));
  EXPECT_EQ(Run("--help").status, 0);
  for (const std::string command : {"info", "convert", "make"}) {
    const Outcome help = Run(command + " --help");
    EXPECT_EQ(help.status, 0);
    EXPECT_THAT(help.text, HasSubstr("Usage: t6-checkpoint " + command));
  }
}

TEST_F(Tool, TellsWhatIsInACheckpoint) {
  WriteSource("a", Shapes());
  const Outcome info = Run("info --tensors " + Path("a"));
  EXPECT_EQ(info.status, 0) << info.text;
  for (const char* part : {"2 layers, 2 heads of 4, width 6", "R_Q 2, R_K 1, R_V 1", "tied", "cannot tell",
                           "--variant", "transformer.wte.weight", "[10, 6]"}) {
    EXPECT_THAT(info.text, HasSubstr(part));
  }
  const Outcome refused = Run("info --variant T6_partialrope " + Path("a"));
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.text, HasSubstr("T6_partialrope"));
  EXPECT_EQ(Run("info --model-override block_size=8 " + Path("a")).status, 0);
  EXPECT_THAT(Run("info --model-override nonsense=8 " + Path("a")).text, HasSubstr("known are"));
  EXPECT_EQ(Run("info " + Path("nowhere")).status, 1);
}

TEST_F(Tool, ConvertsWithoutChangingAValue) {
  WriteSource("a", Shapes());
  const Outcome done = Run("convert " + Path("a") + " " + Path("b"));
  EXPECT_EQ(done.status, 0) << done.text;
  const auto from = OpenCheckpoint(Path("a")), to = OpenCheckpoint(Path("b"));
  ASSERT_TRUE(from.ok() && to.ok());
  EXPECT_EQ((*to)->Names().size() + 1, (*from)->Names().size());  // without the tied lm_head
  for (const std::string& name : (*to)->Names()) {
    const TensorView a = *(*from)->Find(name), b = *(*to)->Find(name);
    ASSERT_EQ(a.shape, b.shape);
    EXPECT_EQ(std::memcmp(a.data, b.data, a.n_bytes()), 0) << name;
  }
  EXPECT_EQ(ReadWhole(Path("b/config.json")), testing::TinyConfig());
  EXPECT_EQ(ReadWhole(Path("b/tokenizer.json")), "{\"a\": 1}");
  EXPECT_TRUE(ReadModelSpec(Path("b"), **to, {}).ok());
}

TEST_F(Tool, ConvertsTypes) {
  WriteSource("a", Shapes());
  EXPECT_EQ(Run("convert --dtype bf16 " + Path("a") + " " + Path("b")).status, 0);
  EXPECT_EQ(Run("convert --dtype=f32 " + Path("b") + " " + Path("c")).status, 0);
  const auto b = OpenCheckpoint(Path("b")), c = OpenCheckpoint(Path("c"));
  ASSERT_TRUE(b.ok() && c.ok());
  const TensorView narrow = *(*b)->Find("transformer.wte.weight"),
                   wide = *(*c)->Find("transformer.wte.weight");
  EXPECT_EQ(narrow.dtype, DType::kBF16);
  EXPECT_EQ(static_cast<const float*>(wide.data)[59], RoundToBf16(0.7f));
  EXPECT_THAT(ReadWhole(Path("b/config.json")), HasSubstr("\"torch_dtype\": \"bfloat16\""));
  EXPECT_THAT(ReadWhole(Path("c/config.json")), HasSubstr("\"torch_dtype\": \"float32\""));
}

TEST_F(Tool, ShardsAndReplacesOnlyWithForce) {
  WriteSource("a", Shapes());
  EXPECT_EQ(Run("convert " + Path("a") + " " + Path("b")).status, 0);
  const std::string before = ReadWhole(Path("b/model.safetensors"));
  const Outcome again = Run("convert --max-shard-bytes 2kB " + Path("a") + " " + Path("b"));
  EXPECT_EQ(again.status, 1);
  EXPECT_THAT(again.text, HasSubstr("--force"));
  EXPECT_EQ(ReadWhole(Path("b/model.safetensors")), before);
  EXPECT_EQ(Run("convert --force --max-shard-bytes 2kB " + Path("a") + " " + Path("b")).status, 0);
  EXPECT_FALSE(fs::exists(Path("b/model.safetensors")));  // it would have been read instead of the shards
  const auto shards = OpenCheckpoint(Path("b"));
  ASSERT_TRUE(shards.ok()) << shards.status();
  EXPECT_TRUE(ReadModelSpec(Path("b"), **shards, {}).ok());
  for (const auto& entry : fs::directory_iterator(Path("b"))) {
    EXPECT_NE(entry.path().extension(), ".tmp");
    EXPECT_LT(fs::file_size(entry), 4000u);
  }
  EXPECT_EQ(Run("convert --force " + Path("a") + " " + Path("a")).status, 1);
}

TEST_F(Tool, LeavesNothingWhenTheSourceIsDamaged) {
  WriteSource("a", Shapes());
  std::string bin = ReadWhole(Path("a/pytorch_model.bin"));
  bin[bin.size() / 2] ^= 1;
  folder_.Write("a/pytorch_model.bin", bin);
  EXPECT_EQ(Run("convert " + Path("a") + " " + Path("b")).status, 1);
  EXPECT_FALSE(fs::exists(Path("b")));
}

TEST_F(Tool, MakesTheSameModelForTheSameFlags) {
  EXPECT_EQ(Run("make --preset tiny " + Path("a")).status, 0);
  EXPECT_EQ(Run("make --preset tiny " + Path("b")).status, 0);
  EXPECT_EQ(Run("make --preset tiny --seed 1 " + Path("c")).status, 0);
  EXPECT_EQ(ReadWhole(Path("a/model.safetensors")), ReadWhole(Path("b/model.safetensors")));
  EXPECT_NE(ReadWhole(Path("a/model.safetensors")), ReadWhole(Path("c/model.safetensors")));
  const auto source = OpenCheckpoint(Path("a"));
  const TensorView wte = *(*source)->Find("transformer.wte.weight");
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < wte.n_elements(); ++i) {
    const double x = static_cast<const float*>(wte.data)[i];
    sum += x, squares += x * x;
  }
  const auto n = static_cast<double>(wte.n_elements());
  EXPECT_NEAR(sum / n, 0, 1e-3);
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 1e-3);
}

TEST_F(Tool, MakesTheSizesItIsTold) {
  const Outcome made =
      Run("make --preset docqa --layers 1 --heads 3 --head-dim 8 --width 24 --q-rank 4 --rank 3 --vocab 50 "
          "--context 99 --groupnorm --dtype f32 " +
          Path("a"));
  ASSERT_EQ(made.status, 0) << made.text;
  const auto source = OpenCheckpoint(Path("a"));
  const auto spec = ReadModelSpec(Path("a"), **source, {});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->n_layers, 1);
  EXPECT_EQ(spec->attention.n_heads, 3);
  EXPECT_EQ(spec->attention.q.rank, 4);
  EXPECT_EQ(spec->attention.v.rank, 3);
  EXPECT_EQ(spec->block_size, 99);
  EXPECT_TRUE(spec->attention.head_norm);
  EXPECT_EQ(static_cast<const float*>((*source)->Find("transformer.h.0.attn.subln.weight")->data)[7], 1.0f);
}

}  // namespace
}  // namespace t6
