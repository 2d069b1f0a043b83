// The TensorSource that the readers of both formats fill: owns the files, and a sorted table of checked views
// of them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/checkpoint/file_bytes.h"
#include "engine/checkpoint/tensor_source.h"

namespace t6 {

class TensorTable final : public TensorSource {
 public:
  std::vector<std::string> Names() const override;
  StatusOr<TensorView> Find(std::string_view name) const override;

  // The file that the following Add()s speak of. Returns it.
  const FileBytes& AddFile(std::unique_ptr<FileBytes> file);
  // A tensor whose bytes start at `offset` of the last file and end inside its first `limit` bytes. Refuses
  // names that are no plain text or taken, sizes that are not positive, and what does not fit.
  Status Add(std::string_view name, DType dtype, std::vector<int64_t> shape, uint64_t offset, uint64_t limit);
  // The name of the file that holds a tensor; empty when there is no such tensor.
  std::string_view FileOf(std::string_view name) const;

 private:
  struct Entry {
    TensorView view;
    const FileBytes* file = nullptr;
  };

  StatusOr<const uint8_t*> AlignedCopy(const uint8_t* data, uint64_t bytes);

  std::vector<std::unique_ptr<FileBytes>> files_;
  uint64_t file_bytes_ = 0;
  // Of tensors whose place in their file is not aligned to their type; together no larger than the files.
  std::map<std::pair<const uint8_t*, uint64_t>, HostBuffer> copies_;
  uint64_t copied_bytes_ = 0;
  std::map<std::string, Entry, std::less<>> tensors_;
};

// The bytes that such a tensor takes. INVALID_ARGUMENT when a size is not positive or the product is absurd.
StatusOr<uint64_t> CheckedBytes(DType dtype, const std::vector<int64_t>& shape);

}  // namespace t6
