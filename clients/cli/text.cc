#include "clients/cli/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>

namespace t6::cli {

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

bool IsUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    auto byte = static_cast<uint8_t>(text[i++]);
    if (byte < 0x80) continue;
    int more = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1;
    if (byte < 0xC2 || byte > 0xF4 || text.size() - i < static_cast<size_t>(more)) return false;
    uint32_t code = byte & (0x3Fu >> more);
    for (int k = 0; k < more; ++k) {
      auto next = static_cast<uint8_t>(text[i++]);
      if ((next & 0xC0) != 0x80) return false;
      code = code << 6 | (next & 0x3F);
    }
    // Overlong forms, surrogates, beyond Unicode.
    if ((more == 2 && code < 0x800) || (more == 3 && code < 0x10000) || code > 0x10FFFF) return false;
    if (code >= 0xD800 && code <= 0xDFFF) return false;
  }
  return true;
}

std::string ValueOrFile(const std::string& text, std::string& out) {
  if (!text.starts_with('@')) {
    out = text;
    return "";
  }
  std::ifstream file(text.substr(1), std::ios::binary);
  std::ostringstream content;
  if (!(content << file.rdbuf())) return fmt::format("cannot read '{}'", text.substr(1));
  out = std::string(Trim(content.str()));
  return "";
}

std::string CheckTarget(const std::string& target) {
  const bool url = target.starts_with("http://") || target.starts_with("https://");
  if (!url && target.find(':') != std::string::npos) return "";
  return fmt::format("'{}' is not HOST:PORT, such as 127.0.0.1:50051", target);
}

std::string ParseKey(const std::string& text, std::string& out) {
  std::string error = ValueOrFile(text, out);
  if (!error.empty()) return error;
  if (out.empty()) return "the key is empty";
  const bool visible = std::all_of(out.begin(), out.end(), [](char c) { return c > ' ' && c <= '~'; });
  return visible ? "" : "a key is visible ASCII characters without spaces";
}

}  // namespace t6::cli
