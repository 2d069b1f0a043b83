#include "engine/checkpoint/zip_directory.h"

#include <zlib.h>

#include <algorithm>
#include <optional>
#include <set>

#include "engine/checkpoint/byte_reader.h"

namespace t6 {
namespace {

using Bytes = std::span<const uint8_t>;

constexpr uint32_t kLocalHeader = 0x04034b50, kDirectoryEntry = 0x02014b50, kEnd = 0x06054b50,
                   kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
constexpr uint64_t kEndSize = 22, kLocatorSize = 20, kEnd64Size = 56;
constexpr uint64_t kMaxEntries = 1 << 20;
constexpr uint16_t kZip64Extra = 1;
constexpr uint16_t kEncrypted = 1, kSizesFollow = 8;  // general purpose flags

struct Directory {
  uint64_t offset = 0, size = 0, entries = 0;
};

uint32_t SignatureAt(Bytes file, uint64_t at) { return ByteReader(file, at).Read<uint32_t>(); }

// The end record is the last thing in the file, but for a comment whose length it gives.
StatusOr<uint64_t> FindEnd(Bytes file) {
  const uint64_t furthest = kEndSize + 0xffff;
  for (uint64_t back = kEndSize; back <= std::min<uint64_t>(file.size(), furthest); ++back) {
    const uint64_t at = file.size() - back;
    if (SignatureAt(file, at) != kEnd) continue;
    if (ByteReader(file, at + 20).Read<uint16_t>() == back - kEndSize) return at;
  }
  return InvalidArgument("is no complete zip file: it has no end record ({} bytes)", file.size());
}

StatusOr<Directory> ReadEnd(Bytes file) {
  T6_ASSIGN_OR_RETURN(uint64_t end, FindEnd(file));
  ByteReader r(file, end + 4);
  const uint32_t disks = r.Read<uint16_t>() + uint32_t{r.Read<uint16_t>()};
  if (disks != 0) return InvalidArgument("zip file is split over several disks");
  const uint16_t here = r.Read<uint16_t>(), entries = r.Read<uint16_t>();
  const uint32_t size = r.Read<uint32_t>(), offset = r.Read<uint32_t>();
  Directory directory{offset, size, entries};
  if (here != entries)
    return InvalidArgument("zip end record at byte {} counts {} and {} entries", end, here, entries);
  if (end >= kLocatorSize && SignatureAt(file, end - kLocatorSize) == kLocator64) {
    const uint64_t at = ByteReader(file, end - kLocatorSize + 8).Read<uint64_t>();
    if (at > end - kLocatorSize || end - kLocatorSize - at < kEnd64Size || SignatureAt(file, at) != kEnd64) {
      return InvalidArgument("zip64 end record is not at byte {}, where its locator says", at);
    }
    ByteReader r64(file, at + 24);
    const uint64_t here64 = r64.Read<uint64_t>();
    directory.entries = r64.Read<uint64_t>();
    directory.size = r64.Read<uint64_t>();
    directory.offset = r64.Read<uint64_t>();
    const bool agree = here64 == directory.entries && (entries == 0xffff || entries == directory.entries) &&
                       (size == 0xffffffff || size == directory.size) &&
                       (offset == 0xffffffff || offset == directory.offset);
    if (!agree) return InvalidArgument("zip end records at bytes {} and {} disagree", at, end);
    end = at;
  }
  if (directory.offset > end || directory.size != end - directory.offset) {
    return InvalidArgument(
        "zip directory of {} bytes at byte {} does not end at byte {}, where its end record stands",
        directory.size, directory.offset, end);
  }
  if (directory.entries > kMaxEntries)
    return InvalidArgument("zip directory has {} entries", directory.entries);
  return directory;
}

// The 64-bit numbers that stand in an extra field for those that are all ones in the header.
Status ReadZip64Extra(std::string_view extra, std::string_view name,
                      std::initializer_list<uint64_t*> numbers) {
  ByteReader r({reinterpret_cast<const uint8_t*>(extra.data()), extra.size()});
  while (r.left() >= 4) {
    const uint16_t id = r.Read<uint16_t>(), size = r.Read<uint16_t>();
    const std::string_view field = r.Take(size);
    if (r.failed()) break;
    if (id != kZip64Extra) continue;
    ByteReader f({reinterpret_cast<const uint8_t*>(field.data()), field.size()});
    for (uint64_t* number : numbers) {
      if (*number == 0xffffffff) *number = f.Read<uint64_t>();
    }
    if (f.failed()) return InvalidArgument("zip entry \"{}\": its zip64 field has only {} bytes", name, size);
    return absl::OkStatus();
  }
  for (const uint64_t* number : numbers) {
    if (*number == 0xffffffff) return InvalidArgument("zip entry \"{}\": its zip64 field is missing", name);
  }
  return absl::OkStatus();
}

StatusOr<ZipEntry> ReadDirectoryEntry(ByteReader& r) {
  const uint64_t at = r.at();
  ZipEntry entry;
  if (r.Read<uint32_t>() != kDirectoryEntry)
    return InvalidArgument("zip directory has no entry at byte {}", at);
  r.Take(4);  // versions
  const uint16_t flags = r.Read<uint16_t>(), method = r.Read<uint16_t>();
  r.Take(4);  // time
  entry.crc32 = r.Read<uint32_t>();
  uint64_t stored = r.Read<uint32_t>();
  entry.size = r.Read<uint32_t>();
  const uint16_t name_size = r.Read<uint16_t>(), extra_size = r.Read<uint16_t>(),
                 comment = r.Read<uint16_t>();
  r.Take(8);  // disk, attributes
  entry.header = r.Read<uint32_t>();
  entry.name = r.Take(name_size);
  const std::string_view extra = r.Take(extra_size);
  r.Take(comment);
  if (r.failed()) return InvalidArgument("zip directory is cut off in the entry at byte {}", at);
  if (entry.name.empty() ||
      std::any_of(entry.name.begin(), entry.name.end(), [](char c) { return c < ' ' || c > '~'; })) {
    return InvalidArgument("zip directory has a name that is no plain text at byte {}", at);
  }
  T6_RETURN_IF_ERROR(ReadZip64Extra(extra, entry.name, {&entry.size, &stored, &entry.header}));
  if (flags & kEncrypted) return InvalidArgument("zip entry \"{}\" is encrypted", entry.name);
  if (method != 0) {
    return InvalidArgument("zip entry \"{}\" is compressed (method {}); torch.save stores", entry.name,
                           method);
  }
  if (stored != entry.size) {
    return InvalidArgument("zip entry \"{}\" is stored, yet has sizes {} and {}", entry.name, stored,
                           entry.size);
  }
  return entry;
}

Status LocateData(Bytes file, uint64_t directory, ZipEntry& entry) {
  ByteReader r(file, entry.header);
  const uint32_t signature = r.Read<uint32_t>();
  r.Take(2);  // version
  const uint16_t flags = r.Read<uint16_t>(), method = r.Read<uint16_t>();
  r.Take(4);  // time
  const uint32_t crc = r.Read<uint32_t>(), stored = r.Read<uint32_t>(), size = r.Read<uint32_t>();
  const uint16_t name_size = r.Read<uint16_t>(), extra_size = r.Read<uint16_t>();
  const std::string_view name = r.Take(name_size);
  r.Take(extra_size);
  if (r.failed() || signature != kLocalHeader) {
    return InvalidArgument("zip entry \"{}\" has no header at byte {}", entry.name, entry.header);
  }
  // Sizes that follow the data, or stand in a zip64 field, are those of the directory; others must agree with
  // it.
  const bool follow = flags & kSizesFollow;
  const auto agrees = [&](uint32_t local, uint64_t said) {
    return local == said || local == 0xffffffff || (follow && local == 0);
  };
  if (name != entry.name || method != 0 || !agrees(size, entry.size) || !agrees(stored, entry.size) ||
      !(crc == entry.crc32 || (follow && crc == 0))) {
    return InvalidArgument("zip entry \"{}\": its header at byte {} and the directory disagree", entry.name,
                           entry.header);
  }
  entry.offset = r.at();
  if (entry.offset > directory || entry.size > directory - entry.offset) {
    return InvalidArgument("zip entry \"{}\": {} bytes at byte {} reach into the directory at byte {}",
                           entry.name, entry.size, entry.offset, directory);
  }
  return absl::OkStatus();
}

Status CheckOverlaps(const std::vector<ZipEntry>& entries) {
  std::vector<const ZipEntry*> sorted;
  for (const ZipEntry& e : entries) sorted.push_back(&e);
  std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return a->header < b->header; });
  for (size_t i = 1; i < sorted.size(); ++i) {
    const ZipEntry &a = *sorted[i - 1], &b = *sorted[i];
    if (a.offset + a.size > b.header) {
      return InvalidArgument("zip entries \"{}\" and \"{}\" overlap at byte {}", a.name, b.name, b.header);
    }
  }
  return absl::OkStatus();
}

}  // namespace

StatusOr<std::vector<ZipEntry>> ReadZipDirectory(Bytes file) {
  T6_ASSIGN_OR_RETURN(const Directory directory, ReadEnd(file));
  ByteReader r(file.first(directory.offset + directory.size), directory.offset);
  std::vector<ZipEntry> entries;
  std::set<std::string_view> names;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    T6_ASSIGN_OR_RETURN(ZipEntry entry, ReadDirectoryEntry(r));
    T6_RETURN_IF_ERROR(LocateData(file, directory.offset, entry));
    if (!names.insert(entry.name).second)
      return InvalidArgument("zip entry \"{}\" is there twice", entry.name);
    entries.push_back(entry);
  }
  if (r.left() != 0) return InvalidArgument("zip directory has {} bytes after its last entry", r.left());
  T6_RETURN_IF_ERROR(CheckOverlaps(entries));
  return entries;
}

Status CheckCrc(Bytes file, const ZipEntry& entry) {
  const uint32_t actual = crc32_z(0, file.data() + entry.offset, entry.size);
  if (actual == entry.crc32) return absl::OkStatus();
  return InvalidArgument("zip entry \"{}\" at byte {} is damaged: its CRC is {:08x}, not {:08x}", entry.name,
                         entry.offset, actual, entry.crc32);
}

}  // namespace t6
