// JSON from files that nobody vouches for: bounded depth and number of values, a key given twice is an error,
// and no exception leaves. INVALID_ARGUMENT says what is wrong and at which byte.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "engine/base/status.h"

namespace t6 {

inline constexpr int kMaxJsonDepth = 64;
inline constexpr size_t kMaxJsonValues = size_t{1} << 22;

StatusOr<nlohmann::json> ParseBoundedJson(std::string_view text);

}  // namespace t6
