// Folders: which file is taken, shards and their index, files that are no files.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include "engine/base/read_file.h"
#include "engine/checkpoint/file_bytes.h"
#include "engine/checkpoint/tensor_source.h"
#include "tests/engine/checkpoint/torch_zip_writer.h"
#include "tests/support/temporary_folder.h"

namespace t6 {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

std::string Bin(const std::string& name, float value) {
  const std::string pickle = testing::StateDict({testing::WholeTensor(name, {1}, "0")});
  return testing::WriteZip(testing::TorchMembers(pickle, {testing::Floats({value})}));
}

std::string Safetensors(const std::string& name, float value) {
  const std::string header = "{\"" + name + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  std::string file;
  testing::AppendNumber<uint64_t>(file, header.size());
  return file + header + testing::Floats({value});
}

std::string Index(const std::string& weight_map) {
  return R"({"metadata":{},"weight_map":)" + weight_map + "}";
}

std::string ErrorOf(const TemporaryFolder& folder) {
  const auto source = OpenCheckpoint(folder.path());
  return source.ok() ? "read" : std::string(MessageOf(source.status()));
}

float ValueOf(const TensorSource& source, const std::string& name) {
  return static_cast<const float*>(source.Find(name)->data)[0];
}

TEST(OpenCheckpoint, TakesSafetensorsFirst) {
  const TemporaryFolder folder;
  EXPECT_THAT(ErrorOf(folder), HasSubstr("no model.safetensors"));
  folder.Write("pytorch_model.bin", Bin("a", 1));
  EXPECT_EQ(ValueOf(**OpenCheckpoint(folder.path()), "a"), 1);
  folder.Write("model.safetensors", Safetensors("a", 2));
  EXPECT_EQ(ValueOf(**OpenCheckpoint(folder.path()), "a"), 2);
}

TEST(OpenCheckpoint, ReadsShardsOfBothFormats) {
  const TemporaryFolder folder;
  folder.Write("one.bin", Bin("a", 1));
  folder.Write("two.bin", Bin("b", 2));
  folder.Write("pytorch_model.bin.index.json", Index(R"({"a":"one.bin","b":"two.bin"})"));
  auto source = OpenCheckpoint(folder.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_THAT((*source)->Names(), ElementsAre("a", "b"));
  EXPECT_EQ(ValueOf(**source, "b"), 2);
  folder.Write("one.safetensors", Safetensors("a", 3));
  folder.Write("model.safetensors.index.json", Index(R"({"a":"one.safetensors"})"));
  source = OpenCheckpoint(folder.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(ValueOf(**source, "a"), 3);
}

TEST(OpenCheckpoint, WantsPlainNamesInTheIndex) {
  const TemporaryFolder folder;
  folder.Write("one.bin", Bin("a", 1));
  for (const std::string name : {"../one.bin", "/etc/passwd", "x/../one.bin", "..", ".", "", "one.bin\\n",
                                 ".hidden", "a\\\\b", "./one.bin"}) {
    folder.Write("pytorch_model.bin.index.json", Index("{\"a\":\"" + name + "\"}"));
    EXPECT_THAT(ErrorOf(folder), AllOf(HasSubstr("tensor \"a\""), HasSubstr("no plain file name"))) << name;
  }
}

TEST(OpenCheckpoint, WantsEveryTensorWhereTheIndexSays) {
  const TemporaryFolder folder;
  folder.Write("one.bin", Bin("a", 1));
  folder.Write("two.bin", Bin("b", 2));
  const auto with = [&](const std::string& index) {
    folder.Write("pytorch_model.bin.index.json", index);
    return ErrorOf(folder);
  };
  EXPECT_THAT(with(Index(R"({"a":"one.bin","b":"one.bin"})")),
              AllOf(HasSubstr("tensor \"b\""), HasSubstr("not there")));
  EXPECT_THAT(with(Index(R"({"a":"two.bin","b":"one.bin"})")),
              AllOf(HasSubstr("tensor \"a\""), HasSubstr("but is in")));
  EXPECT_THAT(with(Index(R"({"b":"two.bin","c":"one.bin"})")), HasSubstr("tensor \"c\""));
  EXPECT_THAT(with(Index(R"({"a":"none.bin"})")), HasSubstr("none.bin: no such file"));
  EXPECT_THAT(with(Index(R"({"a":7})")), HasSubstr("tensor \"a\": its file is no string"));
  EXPECT_THAT(with(Index("{}")), HasSubstr("empty"));
  EXPECT_THAT(with("{}"), HasSubstr("no \"weight_map\""));
  EXPECT_THAT(with("{"), HasSubstr("malformed JSON"));
  EXPECT_THAT(with(""), HasSubstr("malformed JSON"));
  folder.Write("again.bin", Bin("a", 3));
  EXPECT_THAT(with(Index(R"({"a":"again.bin","b":"one.bin"})")), HasSubstr("tensor \"a\" is there twice"));
  folder.Write(
      "both.bin",
      testing::WriteZip(testing::TorchMembers(
          testing::StateDict({testing::WholeTensor("a", {1}, "0"), testing::WholeTensor("c", {1}, "0")}),
          {testing::Floats({1})})));
  EXPECT_THAT(with(Index(R"({"a":"both.bin"})")), HasSubstr("tensor \"c\""));
}

TEST(OpenCheckpoint, SaysWhyAFolderCannotBeOpened) {
  const TemporaryFolder folder;
  const auto error_of = [](const std::filesystem::path& path) {
    return std::string(OpenCheckpoint(path).status().message());
  };
  EXPECT_THAT(error_of(folder.path() / "nowhere"), EndsWith("nowhere: no such folder"));
  EXPECT_THAT(error_of(folder.Write("file", "x")), EndsWith("file: not a folder"));
  EXPECT_THAT(error_of(folder.path()), HasSubstr("no model.safetensors"));
  // Like a folder that may not be entered, which root may.
  EXPECT_THAT(error_of(folder.path() / std::string(300, 'x')), HasSubstr("File name too long"));
  EXPECT_THAT(std::string(ReadTextFile(folder.path() / std::string(300, 'x'), 9).status().message()),
              EndsWith("cannot be read: File name too long"));
}

TEST(OpenCheckpoint, NamesWhatIsNoFile) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path() / "model.safetensors");
  EXPECT_THAT(ErrorOf(folder), HasSubstr("model.safetensors: is no regular file"));
  std::filesystem::remove(folder.path() / "model.safetensors");
  ASSERT_EQ(mkfifo((folder.path() / "model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(ErrorOf(folder), HasSubstr("is no regular file"));  // and does not wait for a writer
  std::filesystem::remove(folder.path() / "model.safetensors");
  std::filesystem::create_symlink("/nowhere", folder.path() / "model.safetensors");
  EXPECT_THAT(ErrorOf(folder), HasSubstr("no such file"));
  std::filesystem::remove(folder.path() / "model.safetensors");
  folder.Write("model.safetensors", "");
  EXPECT_THAT(ErrorOf(folder), HasSubstr("is empty"));
}

TEST(FileBytes, OutlivesAFileThatIsCutShort) {
  const TemporaryFolder folder;
  const auto path = folder.Write("x", std::string(100'000, 'x'));
  const auto copied = FileBytes::Open(path), mapped = FileBytes::Open(path, 0);
  ASSERT_TRUE(copied.ok() && mapped.ok());
  EXPECT_EQ((*mapped)->bytes()[99'999], 'x');
  std::filesystem::resize_file(path, 10);
  EXPECT_TRUE((*copied)->CheckUnchanged().ok());
  EXPECT_EQ((*copied)->bytes()[99'999], 'x');
  EXPECT_THAT(std::string(MessageOf((*mapped)->CheckUnchanged())),
              HasSubstr("was cut from 100000 to 10 bytes"));
}

TEST(FileBytes, BoundsTextFiles) {
  const TemporaryFolder folder;
  const auto path = folder.Write("x", "12345");
  EXPECT_EQ(*ReadTextFile(path, 5), "12345");
  EXPECT_EQ(ReadTextFile(path, 4).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace t6
