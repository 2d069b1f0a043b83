// A whole small file into memory: configurations, tokenizers, templates.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

#include "engine/base/status.h"

namespace t6 {

// NOT_FOUND: no such file; INVALID_ARGUMENT: not a regular file, or it cannot be read; RESOURCE_EXHAUSTED:
// larger than `limit` bytes.
StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, size_t limit);

}  // namespace t6
