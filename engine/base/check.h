// T6_CHECK: for what is impossible unless this program is wrong. Never for input or the environment (see
// status.h).
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

namespace t6::internal {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition,
                                     const std::string& detail) {
  std::fprintf(stderr, "%s:%d: T6_CHECK(%s) failed%s%s\n", file, line, condition, detail.empty() ? "" : ": ",
               detail.c_str());
  std::abort();
}

}  // namespace t6::internal

// T6_CHECK(cond) or T6_CHECK(cond, "page {} is free", id).
#define T6_CHECK(condition, ...)                                                                \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::t6::internal::CheckFailed(__FILE__, __LINE__, #condition, fmt::format("" __VA_ARGS__)); \
  } while (0)

#ifdef NDEBUG
#define T6_DCHECK(condition, ...) \
  do {                            \
  } while (false && (condition))
#else
#define T6_DCHECK(condition, ...) T6_CHECK(condition __VA_OPT__(, ) __VA_ARGS__)
#endif
