// Writes a .safetensors file as a stream: the table first, then each tensor's bytes in the table's order, so
// that a model larger than memory can be made. The bytes go to a temporary name beside `path`; Finish()
// renames it, and a writer that is destroyed before leaves nothing behind.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/tensor/dtype.h"

namespace t6 {

struct TensorHeader {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t n_bytes() const;
};

class SafetensorsWriter {
 public:
  static StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::filesystem::path& path,
                                                             const std::vector<TensorHeader>& tensors);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // The next bytes of the data; pieces of any size.
  Status Append(std::span<const uint8_t> bytes);
  // Flushes to disk and gives the file its name. INVALID_ARGUMENT when bytes are missing.
  Status Finish();

 private:
  SafetensorsWriter() = default;

  std::filesystem::path path_, temporary_;
  int fd_ = -1;
  uint64_t left_ = 0;  // bytes of data still to come
};

}  // namespace t6
