// The directory of a zip or zip64 file whose entries are stored, not compressed: what torch.save writes.
// Every range was checked: inside the file, before the directory, no two overlapping, local header and
// directory agreeing. Errors name the entry or the offset; the caller names the file.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace t6 {

struct ZipEntry {
  std::string_view name;  // in the file's bytes
  uint64_t header = 0;    // offset of its local header
  uint64_t offset = 0;    // of its data
  uint64_t size = 0;
  uint32_t crc32 = 0;
};

// In the directory's order; names are unique.
StatusOr<std::vector<ZipEntry>> ReadZipDirectory(std::span<const uint8_t> file);

// INVALID_ARGUMENT when the entry's bytes are not those that were written.
Status CheckCrc(std::span<const uint8_t> file, const ZipEntry& entry);

}  // namespace t6
