#include "engine/text/utf8.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace t6 {
namespace {

TEST(Utf8, EveryCodePointSurvivesTheRoundTrip) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendUtf8(c, &text);
    const auto back = CodePointAt(text, 0);
    ASSERT_TRUE(back.has_value()) << std::hex << static_cast<uint32_t>(c);
    ASSERT_EQ(back->value, c);
    ASSERT_EQ(static_cast<size_t>(back->size), text.size());
  }
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  EXPECT_EQ(FirstInvalidUtf8("plain \xC3\xA9 \xF0\x9F\x98\x80"), std::string::npos);
  EXPECT_EQ(FirstInvalidUtf8(""), std::string::npos);
  EXPECT_EQ(FirstInvalidUtf8(std::string_view("a\0b", 3)), std::string::npos);
  EXPECT_EQ(FirstInvalidUtf8("ab\x80"), 2u);
  EXPECT_EQ(FirstInvalidUtf8("\xC0\x80"), 0u);          // overlong
  EXPECT_EQ(FirstInvalidUtf8("\xE0\x9F\xBF"), 0u);      // overlong
  EXPECT_EQ(FirstInvalidUtf8("a\xED\xA0\x80"), 1u);     // surrogate
  EXPECT_EQ(FirstInvalidUtf8("\xF4\x90\x80\x80"), 0u);  // beyond U+10FFFF
  EXPECT_EQ(FirstInvalidUtf8("\xF5\x80\x80\x80"), 0u);
  EXPECT_EQ(FirstInvalidUtf8("abc\xE4\xBD"), 3u);  // cut off
}

TEST(Utf8, AStreamHoldsBackWhatMayBecomeACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.Push("\x98"), "");
  EXPECT_EQ(stream.Push("\x80z"), "\xF0\x9F\x98\x80z");
  EXPECT_EQ(stream.Push("\xE4\xBD"), "");
  EXPECT_EQ(stream.Push("A"),
            "\xEF\xBF\xBD"
            "A");
  EXPECT_EQ(stream.Push("\xC3"), "");
  EXPECT_EQ(stream.Flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.Flush(), "");
}

// The numbers of U+FFFD that Unicode recommends ("maximal subparts") and that Rust and Python produce.
TEST(Utf8, OneReplacementForEachLongestBrokenPiece) {
  const std::vector<std::pair<std::string, int>> cases = {{"\x80", 1},
                                                          {"\xC0\xAF", 2},
                                                          {"\xE0\x80\xAF", 3},
                                                          {"\xED\xA0\x80", 3},
                                                          {"\xF0\x80\x80\xAF", 4},
                                                          {"\xF1\x80\x80"
                                                           "a",
                                                           1},
                                                          {"\xE4\xBD\xE4\xBD", 2},
                                                          {"\xFF\xFE", 2}};
  for (const auto& [bytes, expected] : cases) {
    Utf8Stream stream;
    std::string text = stream.Push(bytes);
    text += stream.Flush();
    int found = 0;
    for (size_t at = text.find("\xEF\xBF\xBD"); at != std::string::npos;
         at = text.find("\xEF\xBF\xBD", at + 3))
      ++found;
    EXPECT_EQ(found, expected) << testing::PrintToString(bytes);
  }
}

TEST(Utf8, SpaceIsWhatPythonStrips) {
  for (const char32_t c : {U' ', U'\t', U'\n', U'\x1C', U'\u0085', U'\u00A0', U'\u3000'})
    EXPECT_TRUE(IsPythonSpace(c));
  for (const char32_t c : {U'a', U'\0', U'\u200B', U'\uFEFF', U'\x7F'}) EXPECT_FALSE(IsPythonSpace(c));
}

}  // namespace
}  // namespace t6
