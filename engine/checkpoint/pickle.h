// Reads the pickle inside a torch.save'd state dict. It is no interpreter: it knows the opcodes that
// torch.save writes for a dict of tensors and five globals, builds plain records, and calls nothing.
// Everything is bounded by the limits below. Errors name the offset in the pickle, and the global or the
// entry that was refused.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/tensor/dtype.h"

namespace t6 {

inline constexpr uint64_t kMaxPickleBytes = uint64_t{16} << 20;

// A tensor as the pickle tells it; nothing of it is checked yet but its form. Text lies in the pickle's
// bytes.
struct PickledTensor {
  std::string_view name;
  std::string_view storage;      // key: the zip entry data/KEY
  DType dtype = DType::kF32;     // of the storage
  int64_t storage_elements = 0;  // numbers in the storage
  int64_t offset = 0;            // first number of the tensor in it
  std::vector<int64_t> shape, stride;
};

// In the dict's order. Names may repeat.
StatusOr<std::vector<PickledTensor>> ReadPickledStateDict(std::span<const uint8_t> pickle);

}  // namespace t6
