// UTF-8 as the text room needs it: checked decoding, and bytes that arrive in pieces. Stateless or one
// caller's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace t6 {

struct CodePoint {
  char32_t value;
  int size;  // bytes
};

// The character that starts at text[at]; nullopt when the bytes there are no character.
std::optional<CodePoint> CodePointAt(std::string_view text, size_t at);
// Offset of the first byte that is not valid UTF-8, or npos.
size_t FirstInvalidUtf8(std::string_view text);
void AppendUtf8(char32_t code_point, std::string* out);
// What str.strip() of Python takes away.
bool IsPythonSpace(char32_t code_point);

// Bytes in pieces -> whole characters. Each longest piece that cannot become a character is U+FFFD, so that
// the joined result is what decoding all bytes at once gives (Rust's from_utf8_lossy, the WHATWG decoder).
class Utf8Stream {
 public:
  // The characters that `bytes` complete; at most three bytes wait for more.
  std::string Push(std::string_view bytes);
  // U+FFFD for a character that was never completed.
  std::string Flush();

 private:
  std::string waiting_;
};

}  // namespace t6
