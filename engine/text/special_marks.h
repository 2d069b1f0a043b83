// Which bytes of a rendered prompt came from the request, so that a special token is cut only where the
// template itself put one. Pure functions on UTF-8.
//
// A template may trim, split, compare or escape what it is given, so a mark must not disturb it: marking
// moves characters by 0x40000, into planes where Unicode has nothing, one for one. White space, quotes,
// backslashes and control characters stay, so strip(), `if content`, length and tojson do what they did. The
// prompt is rendered once from the request as it is and once from the marked request; where both agree in
// length and outside marks, the first is the prompt and the second says where each character came from.
//   - kEveryCharacter marks all else. A template that looks into the text (`'</think>' in content`) may go
//   another way:
//   - kSpecialStrings then marks only special strings, and starts and ends that template text could complete
//   to one.
//   - When even that changes the template's way, the marked rendering is the prompt, with marks taken off
//   after special
//     tokens have been found: the template saw harmless characters, and the text is what the user wrote.
// In no case is a special token cut from bytes that the request brought in as one.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"

namespace t6 {

// Bytes [begin, end) of a text are the special token `id`.
struct SpecialCut {
  size_t begin;
  size_t end;
  int32_t id;
};

// The special tokens of a vocabulary, found by their text.
class SpecialStrings {
 public:
  explicit SpecialStrings(std::vector<std::pair<int32_t, std::string>> tokens);

  // The longest special token that stands at text[at].
  std::optional<SpecialCut> LongestAt(std::string_view text, size_t at) const;
  // Bytes at the start of `text` that may be a special token's end, and at its end that may be one's start.
  size_t OpenStart(std::string_view text) const;
  size_t OpenEnd(std::string_view text) const;

 private:
  std::array<std::vector<std::pair<int32_t, std::string>>, 256> by_first_byte_;  // longest first
};

enum class MarkScheme { kEveryCharacter, kSpecialStrings };

struct TracedText {
  std::string text;
  std::vector<bool> from_request;  // one for each byte of text
};

// The code points that marks use, which no other text should hold.
inline constexpr char32_t kMarkPlanes = 0x40000;
inline bool IsMark(char32_t c) { return c >= kMarkPlanes && c < 2 * kMarkPlanes; }

std::string Mark(std::string_view text, MarkScheme scheme, const SpecialStrings& special);
// nullopt when the two renderings differ in more than marks.
std::optional<TracedText> Trace(std::string_view plain, std::string_view marked);
TracedText Unmark(std::string_view marked);
// Special tokens that hold no byte of the request.
std::vector<SpecialCut> FindCuts(const TracedText& traced, const SpecialStrings& special);

}  // namespace t6
