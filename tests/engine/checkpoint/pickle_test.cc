#include "engine/checkpoint/pickle.h"

#include <gmock/gmock.h>

#include "tests/engine/checkpoint/torch_zip_writer.h"

namespace t6 {
namespace {

using ::testing::AllOf;
using testing::BytesOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::PickleWriter;

std::string ErrorOf(const std::string& pickle) {
  const auto read = ReadPickledStateDict(BytesOf(pickle));
  return read.ok() ? "read" : std::string(MessageOf(read.status()));
}

TEST(Pickle, ReadsAStateDict) {
  testing::TensorSpec half = testing::WholeTensor("b", {4}, "7");
  half.type = "HalfStorage";
  half.elements = 9;
  half.offset = 5;
  const std::string pickle = testing::StateDict({testing::WholeTensor("a", {2, 3}, "0"), half});
  const auto read = ReadPickledStateDict(BytesOf(pickle));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 2u);
  EXPECT_EQ((*read)[0].name, "a");
  EXPECT_EQ((*read)[0].storage, "0");
  EXPECT_EQ((*read)[0].dtype, DType::kF32);
  EXPECT_THAT((*read)[0].shape, ElementsAre(2, 3));
  EXPECT_THAT((*read)[0].stride, ElementsAre(3, 1));
  EXPECT_EQ((*read)[1].dtype, DType::kF16);
  EXPECT_EQ((*read)[1].storage_elements, 9);
  EXPECT_EQ((*read)[1].offset, 5);
}

TEST(Pickle, ReadsAnOrderedDictWithMetadataAndMemo) {
  PickleWriter p;
  p.Global("collections", "OrderedDict").Raw("q\x05").Raw(")R(");
  testing::AddTensor(p, testing::WholeTensor("a", {1}, "0")).Raw("q\x06");
  p.Text("b").Raw("h\x06").Raw("u");  // the same tensor again, from the memo
  p.Raw("}").Text("_metadata").Raw("h\x05)R").Text("").Raw("}").Text("version").Raw("K\x01sss").Raw("b");
  const auto read = ReadPickledStateDict(BytesOf(p.Stop()));
  EXPECT_TRUE(read.ok()) << read.status();
}

TEST(Pickle, ReadsLongIntegers) {
  testing::TensorSpec big = testing::WholeTensor("a", {int64_t{1} << 40}, "0");
  const std::string pickle = testing::StateDict({big});
  const auto read = ReadPickledStateDict(BytesOf(pickle));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT((*read)[0].shape, ElementsAre(int64_t{1} << 40));
}

TEST(Pickle, RunsNothing) {
  const std::string pickle =
      PickleWriter().Global("os", "system").Raw("(").Text("touch /tmp/owned").Raw("tR").Stop();
  EXPECT_THAT(ErrorOf(pickle), AllOf(HasSubstr("\"os.system\""), HasSubstr("at byte 2")));
  for (const char* name : {"eval", "getattr", "__import__"}) {
    EXPECT_THAT(ErrorOf(PickleWriter().Global("builtins", name).Raw(")R").Stop()), HasSubstr(name));
  }
  // What is allowed by name may still not be called in another's place.
  EXPECT_THAT(ErrorOf(PickleWriter().Global("torch", "FloatStorage").Raw(")R").Stop()),
              HasSubstr("something to call"));
  EXPECT_THAT(ErrorOf(PickleWriter().Global("collections", "OrderedDict").Raw("K\x01\x85R").Stop()),
              HasSubstr("with arguments"));
}

TEST(Pickle, NamesTypesThatAreNotRead) {
  testing::TensorSpec t = testing::WholeTensor("a", {1}, "0");
  t.type = "DoubleStorage";
  EXPECT_THAT(ErrorOf(testing::StateDict({t})), HasSubstr("torch.DoubleStorage"));
}

TEST(Pickle, RefusesForeignOpcodes) {
  for (const std::string opcode :
       {"i", "o", "\x81", "\x92", "\x93", "\x95", "\x94", "\x8c", "I", "F", "G", "]", "P"}) {
    EXPECT_THAT(ErrorOf(PickleWriter().Raw(opcode).Stop()), HasSubstr("which torch.save does not write"))
        << opcode;
  }
  EXPECT_THAT(ErrorOf(std::string("\x80\x04}.")), HasSubstr("protocol 4"));
  EXPECT_THAT(ErrorOf("}."), HasSubstr("protocol number"));
}

TEST(Pickle, BoundsIntegersAndStrings) {
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("\x8a\x09").Raw(std::string(9, '\x7f')).Stop()),
              HasSubstr("9 bytes"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("\x8a\xff").Stop()), HasSubstr("255 bytes"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("X\xff\xff\xff\xff").Stop()), HasSubstr("4294967295 bytes"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("c").Raw(std::string(9000, 'a')).Stop()), HasSubstr("cut off"));
}

TEST(Pickle, BoundsStackMemoAndContainers) {
  EXPECT_THAT(ErrorOf(PickleWriter().Raw(std::string(2'000'000, 'N')).Stop()), HasSubstr("stack"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw(std::string(2'000'000, '(')).Stop()), HasSubstr("stack"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("N").Raw(std::string(2'000'000, '\x85')).Stop()),
              HasSubstr("too many tuples"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("(").Raw(std::string(65, 'N')).Raw("t").Stop()),
              HasSubstr("tuple of 65"));
  std::string puts;
  for (uint32_t i = 0; i < (1 << 20) + 1; ++i) puts.append("r").append(reinterpret_cast<const char*>(&i), 4);
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("N").Raw(puts).Stop()), HasSubstr("remembers too much"));
  EXPECT_THAT(ErrorOf(std::string(kMaxPickleBytes + 1, 'N')), HasSubstr("limit"));
}

TEST(Pickle, DeepNestingNeitherRecursesNorHangs) {
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("N").Raw(std::string(1'000'000, '\x85')).Stop()),
              HasSubstr("a dict"));
}

TEST(Pickle, ChecksItsStackAndMemo) {
  for (const std::string opcodes :
       {"R", "Q", "s", "u", "t", "b", "\x85", "\x87", "q\x01", "(u", "(R", "(\x85"}) {
    const std::string error = ErrorOf(PickleWriter().Raw(opcodes).Stop());
    EXPECT_THAT(error, AllOf(HasSubstr("pickle"), HasSubstr("at byte"))) << opcodes;
  }
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("h\x07").Stop()), HasSubstr("never remembered, 7"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("j\xff\xff\xff\xff").Stop()), HasSubstr("never remembered"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("}}").Stop()), HasSubstr("leaves 2 values"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("}").Stop() + "N"), HasSubstr("after its end"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("}(K\x01Nu").Stop()), HasSubstr("a string as key"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("}(K\x01u").Stop()), HasSubstr("without a value"));
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("N").Text("a").Raw("Ns").Stop()), HasSubstr("None where a dict"));
}

TEST(Pickle, NamesEntriesThatAreNoTensors) {
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("}").Text("step").Raw("K\x07s").Stop()),
              AllOf(HasSubstr("\"step\""), HasSubstr("an integer")));
}

TEST(Pickle, ADictThatHoldsItselfIsNoTensor) {
  EXPECT_THAT(ErrorOf(PickleWriter().Raw("}q\x01").Text("a").Raw("h\x01s").Stop()),
              HasSubstr("a dict, not a tensor"));
}

TEST(Pickle, EveryTruncationIsAnError) {
  const std::string pickle = testing::StateDict({testing::WholeTensor("a", {2, 3}, "0")});
  for (size_t n = 0; n < pickle.size(); ++n) EXPECT_NE(ErrorOf(pickle.substr(0, n)), "read") << n;
}

}  // namespace
}  // namespace t6
