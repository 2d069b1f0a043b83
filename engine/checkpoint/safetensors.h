// Reads a .safetensors file (or a shard): eight bytes of length, a JSON header, the data. As the format
// demands, the data's ranges follow each other without overlap, hole or rest.
#pragma once

#include <memory>

#include "engine/base/status.h"
#include "engine/checkpoint/tensor_table.h"

namespace t6 {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// Adds every tensor of the file to `table`. Errors name the file, and the tensor or the offset.
Status AddSafetensors(std::unique_ptr<FileBytes> file, TensorTable& table);

// "F32", "F16" or "BF16"; the other types are in no checkpoint.
std::string_view SafetensorsName(DType dtype);

}  // namespace t6
