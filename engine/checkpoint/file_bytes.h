// The bytes of one regular file, read-only. Files up to kReadWhole are copied into memory of our own, so that
// nothing done to the file later can harm us; larger ones are mapped, and CheckUnchanged() tells whether one
// was cut short since (touching what was cut off would be a signal). Errors name the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "engine/base/status.h"
#include "engine/tensor/buffer.h"

namespace t6 {

class FileBytes {
 public:
  static constexpr uint64_t kReadWhole = uint64_t{256} << 20;

  // NOT_FOUND when there is no such file; INVALID_ARGUMENT when it is no regular file or is empty.
  // `read_whole` moves the border between copied and mapped.
  static StatusOr<std::unique_ptr<FileBytes>> Open(const std::filesystem::path& path,
                                                   uint64_t read_whole = kReadWhole);
  // A copy of `bytes` under the name `name`.
  static StatusOr<std::unique_ptr<FileBytes>> FromMemory(std::string name, std::span<const uint8_t> bytes);
  ~FileBytes();
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  const std::string& name() const { return name_; }
  std::span<const uint8_t> bytes() const { return bytes_; }
  Status CheckUnchanged() const;

 private:
  FileBytes() = default;

  std::string name_;
  std::span<const uint8_t> bytes_;
  HostBuffer copy_;  // empty when mapped
  int mapped_ = -1;  // the file's descriptor when mapped
};

}  // namespace t6
