#include "engine/checkpoint/zip_directory.h"

#include <gmock/gmock.h>

#include "tests/engine/checkpoint/torch_zip_writer.h"

namespace t6 {
namespace {

using ::testing::AllOf;
using testing::BytesOf;
using ::testing::HasSubstr;
using testing::PatchNumber;
using testing::ZipMember;

const std::vector<ZipMember> kTwo = {{"f/one", "first", {}}, {"f/two", "second!", {}}};

std::string ErrorOf(const std::string& zip) {
  const auto read = ReadZipDirectory(BytesOf(zip));
  return read.ok() ? "read" : std::string(MessageOf(read.status()));
}

// Where the directory's entry `n` starts.
size_t EntryAt(const std::string& zip, int n) {
  size_t at = zip.find("PK\x01\x02");
  for (int i = 0; i < n; ++i) at = zip.find("PK\x01\x02", at + 1);
  return at;
}

size_t EndAt(const std::string& zip) { return zip.rfind("PK\x05\x06"); }

TEST(ZipDirectory, FindsEntriesInEveryStyle) {
  for (const bool zip64 : {false, true}) {
    for (const bool descriptors : {false, true}) {
      const std::string zip = testing::WriteZip(kTwo, {zip64, descriptors});
      const auto read = ReadZipDirectory(BytesOf(zip));
      ASSERT_TRUE(read.ok()) << read.status();
      ASSERT_EQ(read->size(), 2u);
      EXPECT_EQ((*read)[1].name, "f/two");
      EXPECT_EQ(zip.substr((*read)[1].offset, (*read)[1].size), "second!");
      EXPECT_TRUE(CheckCrc(BytesOf(zip), (*read)[1]).ok());
    }
  }
}

TEST(ZipDirectory, AllowsACommentAtTheEnd) {
  std::string zip = testing::WriteZip(kTwo);
  PatchNumber<uint16_t>(zip, EndAt(zip) + 20, 5);
  EXPECT_EQ(ErrorOf(zip + "hello"), "read");
  EXPECT_THAT(ErrorOf(zip + "hell"), HasSubstr("no end record"));
}

TEST(ZipDirectory, NamesCompressedAndEncryptedEntries) {
  ZipMember packed{"f/one", "x", {}};
  packed.method = 8;
  EXPECT_THAT(ErrorOf(testing::WriteZip({packed})),
              AllOf(HasSubstr("\"f/one\""), HasSubstr("compressed (method 8)")));
  ZipMember secret{"f/one", "x", {}};
  secret.flags = 1;
  EXPECT_THAT(ErrorOf(testing::WriteZip({secret})), AllOf(HasSubstr("\"f/one\""), HasSubstr("encrypted")));
}

TEST(ZipDirectory, NamesEntriesWhoseBytesChanged) {
  std::string zip = testing::WriteZip(kTwo);
  zip[zip.find("second!")] ^= 1;
  const auto read = ReadZipDirectory(BytesOf(zip));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(CheckCrc(BytesOf(zip), (*read)[0]).ok());
  EXPECT_THAT(std::string(MessageOf(CheckCrc(BytesOf(zip), (*read)[1]))),
              AllOf(HasSubstr("\"f/two\""), HasSubstr("CRC")));
}

TEST(ZipDirectory, RefusesEntriesOutsideTheFile) {
  std::string far = testing::WriteZip(kTwo);
  PatchNumber<uint32_t>(far, EntryAt(far, 1) + 42, 0x7fffffff);  // its header's offset
  EXPECT_THAT(ErrorOf(far), AllOf(HasSubstr("\"f/two\""), HasSubstr("no header at byte 2147483647")));
  std::string large = testing::WriteZip(kTwo, {.descriptors = true});
  for (const size_t field : {20, 24}) PatchNumber<uint32_t>(large, EntryAt(large, 1) + field, 1 << 30);
  EXPECT_THAT(ErrorOf(large), AllOf(HasSubstr("\"f/two\""), HasSubstr("reach into the directory")));
  std::string wide = testing::WriteZip(kTwo, {.zip64 = true, .descriptors = true});
  for (const size_t field : {4, 12})
    PatchNumber<uint64_t>(wide, EntryAt(wide, 1) + 46 + 5 + field, ~uint64_t{0} - 8);
  EXPECT_THAT(ErrorOf(wide), HasSubstr("reach into the directory"));
}

TEST(ZipDirectory, RefusesOverlappingEntries) {
  // An entry whose data holds another's header and data.
  const std::string inner = testing::WriteZip({{"f/two", "second!", {}}});
  std::string zip =
      testing::WriteZip({{"f/one", inner.substr(0, EntryAt(inner, 0)), {}}, {"f/two", "second!", {}}});
  PatchNumber<uint32_t>(zip, EntryAt(zip, 1) + 42, static_cast<uint32_t>(zip.find("PK\x03\x04", 1)));
  EXPECT_THAT(ErrorOf(zip), AllOf(HasSubstr("\"f/one\" and \"f/two\" overlap")));
}

TEST(ZipDirectory, RefusesOneNameTwice) {
  EXPECT_THAT(ErrorOf(testing::WriteZip({{"f/a", "1", {}}, {"f/a", "2", {}}})),
              HasSubstr("\"f/a\" is there twice"));
}

TEST(ZipDirectory, RefusesHeadersThatDisagree) {
  std::string name = testing::WriteZip(kTwo);
  name[name.find("f/two")] = 'g';
  EXPECT_THAT(ErrorOf(name), AllOf(HasSubstr("\"f/two\""), HasSubstr("disagree")));
  std::string size = testing::WriteZip(kTwo);
  PatchNumber<uint32_t>(size, size.find("PK\x03\x04") + 22, 4);
  EXPECT_THAT(ErrorOf(size), AllOf(HasSubstr("\"f/one\""), HasSubstr("disagree")));
}

TEST(ZipDirectory, RefusesEndRecordsThatDisagree) {
  std::string count = testing::WriteZip(kTwo);
  for (const size_t field : {8, 10}) PatchNumber<uint16_t>(count, EndAt(count) + field, 3);
  EXPECT_THAT(ErrorOf(count), HasSubstr("no entry at byte"));
  std::string fewer = testing::WriteZip(kTwo);
  for (const size_t field : {8, 10}) PatchNumber<uint16_t>(fewer, EndAt(fewer) + field, 1);
  EXPECT_THAT(ErrorOf(fewer), HasSubstr("after its last entry"));
  std::string offset = testing::WriteZip(kTwo);
  PatchNumber<uint32_t>(offset, EndAt(offset) + 16, 0);
  EXPECT_THAT(ErrorOf(offset), HasSubstr("does not end at byte"));
  std::string both = testing::WriteZip(kTwo, {.zip64 = true});
  PatchNumber<uint32_t>(both, EndAt(both) + 12, 7);
  EXPECT_THAT(ErrorOf(both), HasSubstr("disagree"));
  std::string lost = testing::WriteZip(kTwo, {.zip64 = true});
  PatchNumber<uint64_t>(lost, EndAt(lost) - 12, ~uint64_t{0});
  EXPECT_THAT(ErrorOf(lost), HasSubstr("where its locator says"));
}

TEST(ZipDirectory, RefusesNamesThatAreNoText) {
  EXPECT_THAT(ErrorOf(testing::WriteZip({{"f/\x1b[2J", "x", {}}})), HasSubstr("no plain text"));
}

TEST(ZipDirectory, EveryTruncationIsAnError) {
  const std::string zip = testing::WriteZip(kTwo, {.zip64 = true, .descriptors = true});
  for (size_t n = 0; n < zip.size(); ++n) EXPECT_NE(ErrorOf(zip.substr(0, n)), "read") << n;
}

}  // namespace
}  // namespace t6
