// Errors across rooms: absl::Status, made with fmt so that the message carries the offending value.
// Debian's Abseil has its std aliases off, hence the string_view conversions that these helpers hide.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace t6 {

using absl::Status;
using absl::StatusOr;

inline absl::string_view AbslView(std::string_view s) { return {s.data(), s.size()}; }
inline std::string_view MessageOf(const Status& s) { return {s.message().data(), s.message().size()}; }

template <typename... Args>
Status MakeStatus(absl::StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, AbslView(fmt::format(format, std::forward<Args>(args)...)));
}

// The caller's fault: a bad value in a request, a file or a flag.
template <typename... Args>
Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kInvalidArgument, format, std::forward<Args>(args)...);
}
template <typename... Args>
Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kNotFound, format, std::forward<Args>(args)...);
}
// What the product does not do (yet), by name.
template <typename... Args>
Status Unimplemented(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kUnimplemented, format, std::forward<Args>(args)...);
}
// A bound was reached; try again later.
template <typename... Args>
Status ResourceExhausted(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kResourceExhausted, format, std::forward<Args>(args)...);
}
template <typename... Args>
Status Unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kUnavailable, format, std::forward<Args>(args)...);
}
template <typename... Args>
Status Internal(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kInternal, format, std::forward<Args>(args)...);
}

// The same error, with where it happened in front: "models/x/config.json: ...".
inline Status Annotate(const Status& status, std::string_view where) {
  if (status.ok()) return status;
  return Status(status.code(), AbslView(fmt::format("{}: {}", where, MessageOf(status))));
}

}  // namespace t6

#define T6_STATUS_CONCAT_INNER(a, b) a##b
#define T6_STATUS_CONCAT(a, b) T6_STATUS_CONCAT_INNER(a, b)

#define T6_RETURN_IF_ERROR(expr)              \
  do {                                        \
    if (::t6::Status _s = (expr); !_s.ok()) { \
      return _s;                              \
    }                                         \
  } while (0)

#define T6_ASSIGN_OR_RETURN(lhs, expr) \
  T6_ASSIGN_OR_RETURN_IMPL(T6_STATUS_CONCAT(_statusor_, __LINE__), lhs, expr)
#define T6_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return tmp.status();            \
  lhs = std::move(tmp).value()
