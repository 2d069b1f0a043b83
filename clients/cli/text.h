// Small text helpers of the client.
#pragma once

#include <string>
#include <string_view>

namespace t6::cli {

// Without white space (ASCII) at both ends.
std::string_view Trim(std::string_view text);

bool IsUtf8(std::string_view text);

}  // namespace t6::cli
