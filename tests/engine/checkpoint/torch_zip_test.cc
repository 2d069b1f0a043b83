#include "engine/checkpoint/torch_zip.h"

#include <gmock/gmock.h>

#include <limits>

#include "tests/engine/checkpoint/torch_zip_writer.h"

namespace t6 {
namespace {

using ::testing::AllOf;
using testing::BytesOf;
using ::testing::ElementsAre;
using testing::Floats;
using ::testing::HasSubstr;
using testing::TensorSpec;
using testing::WholeTensor;

Status Load(const std::string& zip, TensorTable& table) {
  auto file = FileBytes::FromMemory("x.bin", BytesOf(zip));
  T6_RETURN_IF_ERROR(file.status());
  return AddTorchZip(*std::move(file), table);
}

std::string ErrorOf(const std::string& zip) {
  TensorTable table;
  const Status status = Load(zip, table);
  return status.ok() ? "read" : std::string(MessageOf(status));
}

// The error of a file with one tensor over one storage of six floats.
std::string ErrorOf(const TensorSpec& tensor) {
  return ErrorOf(
      testing::WriteZip(testing::TorchMembers(testing::StateDict({tensor}), {std::string(24, 'x')})));
}

TEST(TorchZip, ReadsTensors) {
  TensorSpec tail = WholeTensor("tail", {2}, "0");
  tail.elements = 6;
  tail.offset = 4;
  const std::string pickle =
      testing::StateDict({WholeTensor("a", {2, 3}, "0"), tail, WholeTensor("tied", {3, 2}, "0")});
  TensorTable table;
  const std::string zip = testing::WriteZip(testing::TorchMembers(pickle, {Floats({1, 2, 3, 4, 5, 6})}));
  ASSERT_TRUE(Load(zip, table).ok()) << Load(zip, table);
  EXPECT_THAT(table.Names(), ElementsAre("a", "tail", "tied"));
  const TensorView a = *table.Find("a"), t = *table.Find("tail");
  EXPECT_THAT(a.shape, ElementsAre(2, 3));
  EXPECT_EQ(static_cast<const float*>(a.data)[5], 6.0f);
  EXPECT_EQ(static_cast<const float*>(t.data)[0], 5.0f);
  EXPECT_EQ(table.Find("tied")->data, a.data);
  EXPECT_EQ(table.Find("b").status().code(), absl::StatusCode::kNotFound);
}

TEST(TorchZip, CopiesWhatIsNotAligned) {
  const std::string pickle = testing::StateDict({WholeTensor("a", {2}, "0")});
  for (const size_t alignment : {1, 2, 3, 5, 7}) {
    testing::ZipStyle style{.alignment = alignment};
    TensorTable one;
    ASSERT_TRUE(Load(testing::WriteZip(testing::TorchMembers(pickle, {Floats({7, 8})}), style), one).ok());
    const auto* data = static_cast<const float*>(one.Find("a")->data);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 4, 0u);
    EXPECT_EQ(data[1], 8.0f);
  }
}

TEST(TorchZip, NamesTensorsOfImpossibleShapes) {
  constexpr int64_t kHuge = int64_t{1} << 40, kMax = std::numeric_limits<int64_t>::max();
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{-2, -3},
                                            {0, 6},
                                            {kHuge, kHuge},
                                            {kMax, 2},
                                            {kMax, kMax, kMax},
                                            {-6},
                                            {std::numeric_limits<int64_t>::min()},
                                            {int64_t{1} << 32, int64_t{1} << 32}}) {
    TensorSpec t = WholeTensor("a", {6}, "0");
    t.shape = shape;
    t.stride = std::vector<int64_t>(shape.size(), 1);
    EXPECT_THAT(ErrorOf(t), AllOf(HasSubstr("x.bin: tensor \"a\""), HasSubstr("impossible shape")));
  }
  TensorSpec deep = WholeTensor("a", {6}, "0");
  deep.shape = deep.stride = std::vector<int64_t>(20, 1);
  EXPECT_THAT(ErrorOf(deep), HasSubstr("20 dimensions"));
}

TEST(TorchZip, NamesTensorsThatAreNotDense) {
  TensorSpec t = WholeTensor("a", {2, 3}, "0");
  t.stride = {1, 2};
  EXPECT_THAT(ErrorOf(t), AllOf(HasSubstr("tensor \"a\""), HasSubstr("strides [1, 2]")));
  t.stride = {3};
  EXPECT_THAT(ErrorOf(t), HasSubstr("only dense"));
  TensorSpec row = WholeTensor("a", {1, 6}, "0");
  row.stride = {99, 1};  // a dimension of one has no stride worth the name
  EXPECT_EQ(ErrorOf(row), "read");
}

TEST(TorchZip, NamesTensorsOutsideTheirStorage) {
  TensorSpec t = WholeTensor("a", {7}, "0");
  t.elements = 6;
  EXPECT_THAT(ErrorOf(t), AllOf(HasSubstr("tensor \"a\""), HasSubstr("reach beyond")));
  t = WholeTensor("a", {6}, "0");
  t.offset = 1;
  EXPECT_THAT(ErrorOf(t), HasSubstr("reach beyond"));
  for (const int64_t offset : {int64_t{-1}, int64_t{7}, std::numeric_limits<int64_t>::max()}) {
    t.offset = offset;
    EXPECT_THAT(ErrorOf(t), HasSubstr("starts at")) << offset;
  }
  t = WholeTensor("a", {6}, "0");
  for (const int64_t elements : {int64_t{5}, int64_t{7}, int64_t{-6}, (int64_t{1} << 62) + 6}) {
    t.elements = elements;
    EXPECT_THAT(ErrorOf(t), HasSubstr("its storage of")) << elements;
  }
  t = WholeTensor("a", {6}, "1");
  EXPECT_THAT(ErrorOf(t), HasSubstr("no data/1"));
  t = WholeTensor("a", {6}, "../../0");
  EXPECT_THAT(ErrorOf(t), HasSubstr("no data/../../0"));
}

TEST(TorchZip, NamesTensorsThatAreThereTwice) {
  const std::string pickle = testing::StateDict({WholeTensor("a", {6}, "0"), WholeTensor("a", {6}, "0")});
  EXPECT_THAT(ErrorOf(testing::WriteZip(testing::TorchMembers(pickle, {std::string(24, 'x')}))),
              HasSubstr("tensor \"a\" is there twice"));
}

TEST(TorchZip, RefusesNamesThatAreNoText) {
  EXPECT_THAT(ErrorOf(WholeTensor("", {6}, "0")), HasSubstr("no plain text"));
  EXPECT_THAT(ErrorOf(WholeTensor("a\nb", {6}, "0")), HasSubstr("\"a?b\""));
  EXPECT_THAT(ErrorOf(WholeTensor(std::string(300, 'a'), {6}, "0")), HasSubstr("300 bytes"));
}

TEST(TorchZip, ChecksEveryEntryThatItUses) {
  const std::string pickle = testing::StateDict({WholeTensor("a", {6}, "0")});
  auto members = testing::TorchMembers(pickle, {std::string(24, 'x')});
  members[0].crc = 1;
  EXPECT_THAT(ErrorOf(testing::WriteZip(members)), AllOf(HasSubstr("archive/data.pkl"), HasSubstr("CRC")));
  members[0].crc.reset();
  members[2].crc = 1;
  EXPECT_THAT(ErrorOf(testing::WriteZip(members)), AllOf(HasSubstr("archive/data/0"), HasSubstr("CRC")));
}

TEST(TorchZip, ReadsLittleEndianOnly) {
  auto members =
      testing::TorchMembers(testing::StateDict({WholeTensor("a", {6}, "0")}), {std::string(24, 'x')});
  members[1].data = "big";
  EXPECT_THAT(ErrorOf(testing::WriteZip(members)), HasSubstr("archive/byteorder"));
  members.erase(members.begin() + 1);  // older versions of torch.save
  EXPECT_EQ(ErrorOf(testing::WriteZip(members)), "read");
}

TEST(TorchZip, WantsOnePickle) {
  EXPECT_THAT(ErrorOf(testing::WriteZip({{"archive/x", "", {}}})), HasSubstr("data.pkl"));
  EXPECT_THAT(ErrorOf(testing::WriteZip({{"a/data.pkl", "", {}}, {"b/data.pkl", "", {}}})),
              HasSubstr("two pickles"));
  EXPECT_THAT(ErrorOf("not a zip at all"), HasSubstr("no complete zip file"));
}

// A hundred thousand tensors over one storage that is not aligned would be as many copies of it.
TEST(TorchZip, BoundsCopiesOfSharedStorage) {
  std::vector<TensorSpec> tensors;
  for (int i = 0; i < 200; ++i) {
    TensorSpec t = WholeTensor(fmt::format("t{}", i), {1000 - i}, "0");
    t.elements = 1000;
    tensors.push_back(t);
  }
  auto members = testing::TorchMembers(testing::StateDict(tensors), {std::string(4000, 'x')});
  int refused = 0;
  for (size_t pad = 0; pad < 4; ++pad) {  // moves the storage to other residues of its type's size
    members.insert(members.begin(), {std::string(pad + 1, 'p'), "", {}});
    refused += ErrorOf(testing::WriteZip(members, {.alignment = 1})).find("share too many bytes") !=
               std::string::npos;
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace t6
