#include "engine/checkpoint/safetensors.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "engine/checkpoint/safetensors_writer.h"
#include "tests/engine/checkpoint/torch_zip_writer.h"
#include "tests/support/temporary_folder.h"

namespace t6 {
namespace {

using ::testing::AllOf;
using testing::BytesOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string File(const std::string& header, const std::string& data) {
  std::string file;
  testing::AppendNumber<uint64_t>(file, header.size());
  return file + header + data;
}

Status Load(const std::string& bytes, TensorTable& table) {
  auto file = FileBytes::FromMemory("x.safetensors", BytesOf(bytes));
  T6_RETURN_IF_ERROR(file.status());
  return AddSafetensors(*std::move(file), table);
}

std::string ErrorOf(const std::string& file) {
  TensorTable table;
  const Status status = Load(file, table);
  return status.ok() ? "read" : std::string(MessageOf(status));
}

// The error of a file with tensor "a" of these properties and 24 bytes of data.
std::string ErrorOfTensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return ErrorOf(
      File(R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}",
           std::string(24, 'x')));
}

TEST(Safetensors, ReadsTensorsOfEveryType) {
  const std::string file = File(R"({"__metadata__":{"format":"pt"},
      "half":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},
      "a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
      "brain":{"dtype":"BF16","shape":[],"data_offsets":[12,14]}}  )",
                                testing::Floats({1, 2}) + "hhhhbb");
  TensorTable table;
  ASSERT_TRUE(Load(file, table).ok()) << Load(file, table);
  EXPECT_THAT(table.Names(), ElementsAre("a", "brain", "half"));
  EXPECT_EQ(static_cast<const float*>(table.Find("a")->data)[1], 2.0f);
  EXPECT_EQ(table.Find("half")->dtype, DType::kF16);
  EXPECT_EQ(table.Find("brain")->dtype, DType::kBF16);
  EXPECT_THAT(table.Find("brain")->shape, IsEmpty());
}

TEST(Safetensors, CopiesWhatIsNotAligned) {
  for (const char* pad : {"", " ", "  ", "   "}) {
    const std::string file =
        File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})" + std::string(pad),
             testing::Floats({3, 4}));
    TensorTable table;
    ASSERT_TRUE(Load(file, table).ok());
    const auto* data = static_cast<const float*>(table.Find("a")->data);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 4, 0u);
    EXPECT_EQ(data[1], 4.0f);
  }
}

TEST(Safetensors, BoundsTheHeader) {
  EXPECT_THAT(ErrorOf("1234567"), HasSubstr("only 7 bytes"));
  std::string file;
  testing::AppendNumber<uint64_t>(file, ~uint64_t{0});
  EXPECT_THAT(ErrorOf(file + "{}"), HasSubstr("18446744073709551615 bytes"));
  EXPECT_THAT(ErrorOf(File("", "")), HasSubstr("no JSON object"));
  EXPECT_THAT(ErrorOf(File("[]", "")), HasSubstr("no JSON object"));
  EXPECT_THAT(ErrorOf(File("{\"a\":", "")), HasSubstr("malformed JSON"));
  EXPECT_THAT(ErrorOf(File("{\"a\":" + std::string(100'000, '['), "")), HasSubstr("nested deeper"));
  EXPECT_THAT(ErrorOf(File("{\"a\":[" + std::string(5'000'000, ',') + "]}", "")), HasSubstr("values"));
  EXPECT_THAT(ErrorOf(File("{\"a\":1,\"a\":2}", "")), HasSubstr("key \"a\" twice"));
}

TEST(Safetensors, NamesTensorsThatAreNoTensors) {
  EXPECT_EQ(ErrorOfTensor(R"("F32")", "[2,3]", "[0,24]"), "read");
  EXPECT_THAT(ErrorOfTensor(R"("F64")", "[3]", "[0,24]"), AllOf(HasSubstr("tensor \"a\""), HasSubstr("F64")));
  EXPECT_THAT(ErrorOfTensor("7", "[3]", "[0,24]"), HasSubstr("dtype is 7"));
  for (const char* shape :
       {"[-2,-3]", "[0]", "[2.5]", "[1e400]", "6", "null", "[[6]]", "[\"6\"]", "[6,0]",
        "[18446744073709551615,2]", "[4294967296,4294967296]", "[9223372036854775807,3]"}) {
    EXPECT_NE(ErrorOfTensor(R"("F32")", shape, "[0,24]"), "read") << shape;
  }
  for (const char* offsets : {"[0,20]", "[24,0]", "[0]", "[0,24,0]", "[-24,0]", "{}", "[0,1e2]", "null"}) {
    EXPECT_THAT(ErrorOfTensor(R"("F32")", "[2,3]", offsets), HasSubstr("tensor \"a\"")) << offsets;
  }
  EXPECT_THAT(ErrorOf(File(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", "xxxx")),
              HasSubstr("no \"dtype\""));
  EXPECT_THAT(ErrorOf(File(R"({"a":[1]})", "xxxx")), HasSubstr("no \"dtype\""));
}

TEST(Safetensors, WantsDataWithoutHoleOverlapOrRest) {
  const auto two = [](int first, int second, size_t data) {
    const auto item = [](int at) {
      return R"({"dtype":"F32","shape":[2],"data_offsets":[)" + std::to_string(at) + "," +
             std::to_string(at + 8) + "]}";
    };
    return ErrorOf(File("{\"a\":" + item(first) + ",\"b\":" + item(second) + "}", std::string(data, 'x')));
  };
  EXPECT_EQ(two(0, 8, 16), "read");
  EXPECT_EQ(two(8, 0, 16), "read");
  EXPECT_THAT(two(0, 4, 16), AllOf(HasSubstr("tensor \"b\""), HasSubstr("overlaps")));
  EXPECT_THAT(two(0, 0, 8), HasSubstr("overlaps"));
  EXPECT_THAT(two(0, 12, 20), HasSubstr("hole"));
  EXPECT_THAT(two(4, 12, 20), AllOf(HasSubstr("tensor \"a\""), HasSubstr("hole")));
  EXPECT_THAT(two(0, 8, 15), AllOf(HasSubstr("tensor \"b\""), HasSubstr("ends at byte 16 of 15")));
  EXPECT_THAT(two(0, 8, 17), HasSubstr("1 bytes after its last tensor"));
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const testing::TemporaryFolder folder;
  const auto path = folder.path() / "model.safetensors";
  auto writer = SafetensorsWriter::Create(path, {{"b", DType::kF32, {2}}, {"a", DType::kBF16, {1, 3}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::string data = testing::Floats({5, 6}) + "abcdef";
  ASSERT_TRUE((*writer)->Append(BytesOf(data).first(3)).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_FALSE((*writer)->Finish().ok());  // bytes are missing
  ASSERT_TRUE((*writer)->Append(BytesOf(data).subspan(3)).ok());
  EXPECT_FALSE((*writer)->Append(BytesOf(data).first(1)).ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  const auto source = OpenCheckpoint(folder.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(static_cast<const float*>((*source)->Find("b")->data)[1], 6.0f);
  EXPECT_EQ(std::string_view(static_cast<const char*>((*source)->Find("a")->data), 6), "abcdef");
}

TEST(SafetensorsWriter, LeavesNothingBehindWhenItIsGivenUp) {
  const testing::TemporaryFolder folder;
  { ASSERT_TRUE(SafetensorsWriter::Create(folder.path() / "x.safetensors", {{"a", DType::kF32, {2}}}).ok()); }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace t6
