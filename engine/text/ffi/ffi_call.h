// The C++ side of t6_text.h: its buffers and codes as std::string and Status.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/text/ffi/t6_text.h"

namespace t6::text_ffi {

inline t6_text_slice Slice(std::string_view s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}

// entry: int(t6_text_buffer* out). What it leaves in `out`, or its error.
template <typename Entry>
StatusOr<std::string> Call(Entry&& entry) {
  t6_text_buffer out{nullptr, 0};
  const int code = entry(&out);
  std::string text(reinterpret_cast<const char*>(out.data), out.size);
  t6_text_free(out);
  if (code == T6_TEXT_OK) return text;
  if (code == T6_TEXT_PANIC) return Internal("the text library panicked: {}", text);
  return InvalidArgument("{}", text);
}

}  // namespace t6::text_ffi
