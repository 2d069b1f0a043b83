// How the texts of flags and of --config's values become values. Errors quote the text and say what is
// wanted.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "engine/base/status.h"
#include "server/config.h"

namespace t6::server {

constexpr size_t kMaxConfigBytes = 1 << 20;  // of --config's file and of the API keys'

StatusOr<int64_t> ParseInteger(std::string_view text, int64_t least, int64_t most);
StatusOr<double> ParseDecimal(std::string_view text, double least, double most);
// "4GiB", "1.5MB", "4096": bytes.
StatusOr<size_t> ParseSize(std::string_view text);
// "5s", "1m30s", "500ms"; a bare number is seconds. At most a day.
StatusOr<absl::Duration> ParseDuration(std::string_view text);
// "127.0.0.1:8000", "[::1]:0", "localhost:8000" (which becomes 127.0.0.1).
StatusOr<ListenAddress> ParseAddress(std::string_view text);
StatusOr<std::string> ParseChoice(std::string_view text, std::initializer_list<std::string_view> choices);

}  // namespace t6::server
