#include "engine/text/special_marks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace t6 {
namespace {

const SpecialStrings& Chat() {
  static const SpecialStrings special(
      {{1, "<|im_start|>"}, {2, "<|im_end|>"}, {3, "<|im_end|>!"}, {4, "\n\n\n"}});
  return special;
}

std::string Shown(const TracedText& traced) {  // request bytes as '#'
  std::string shown = traced.text;
  for (size_t i = 0; i < shown.size(); ++i) {
    if (traced.from_request[i]) shown[i] = '#';
  }
  return shown;
}

TEST(SpecialMarks, TheLongestSpecialStringWins) {
  const auto found = Chat().LongestAt("x<|im_end|>!", 1);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->id, 3);
  EXPECT_EQ(found->end, 12u);
  EXPECT_FALSE(Chat().LongestAt("x<|im_en", 1).has_value());
}

TEST(SpecialMarks, OpenEndsAreFound) {
  EXPECT_EQ(Chat().OpenEnd("text <|im_"), 5u);
  EXPECT_EQ(Chat().OpenEnd("text"), 0u);
  EXPECT_EQ(Chat().OpenStart("d|> text"), 3u);
  EXPECT_EQ(Chat().OpenStart(""), 0u);
}

TEST(SpecialMarks, MarkingEveryCharacterLeavesWhatTemplatesLookAt) {
  const std::string marked = Mark(" a\"\\\n\xC3\xA9 ", MarkScheme::kEveryCharacter, Chat());
  EXPECT_EQ(marked.front(), ' ');
  EXPECT_EQ(marked.back(), ' ');
  EXPECT_THAT(marked, testing::HasSubstr("\"\\\n"));
  EXPECT_THAT(marked, testing::Not(testing::HasSubstr("a")));
  EXPECT_EQ(Unmark(marked).text, " a\"\\\n\xC3\xA9 ");
}

TEST(SpecialMarks, MarkingSpecialStringsLeavesOtherText) {
  const std::string text = "a <b> <|im_end|> x";
  const std::string marked = Mark(text, MarkScheme::kSpecialStrings, Chat());
  EXPECT_EQ(marked.substr(0, 6), "a <b> ");
  EXPECT_EQ(marked.find("im_end"), std::string::npos);
  EXPECT_EQ(Shown(Unmark(marked)), "a <b> ########## x");
  EXPECT_EQ(Mark("nothing here", MarkScheme::kSpecialStrings, Chat()), "nothing here");
  EXPECT_EQ(Shown(Unmark(Mark("<|im_  ", MarkScheme::kSpecialStrings, Chat()))), "#####  ");
}

TEST(SpecialMarks, ASpecialTokenOfSpacesIsMarkedToo) {
  for (const MarkScheme scheme : {MarkScheme::kEveryCharacter, MarkScheme::kSpecialStrings}) {
    EXPECT_THAT(FindCuts(Unmark(Mark("a\n\n\nb", scheme, Chat())), Chat()), testing::IsEmpty());
  }
}

TEST(SpecialMarks, TraceTellsWhereEachByteCameFrom) {
  const std::string marked = "[" + Mark("\xC3\xA9 z", MarkScheme::kEveryCharacter, Chat()) + "]";
  const auto traced = Trace("[\xC3\xA9 z]", marked);
  ASSERT_TRUE(traced.has_value());
  EXPECT_EQ(Shown(*traced), "[## #]");
  // A template that changes case still puts each character where it was.
  EXPECT_TRUE(Trace("[\xC3\x89 Z]", marked).has_value());
  EXPECT_FALSE(Trace("[\xC3\xA9 z}", marked).has_value());
  EXPECT_FALSE(Trace("[\xC3\xA9 z", marked).has_value());
  EXPECT_FALSE(Trace("[\xC3\xA9 z]]", marked).has_value());
}

TEST(SpecialMarks, OnlySpecialTokensWithoutAByteOfTheRequestAreCut) {
  const auto cuts_of = [](const std::string& before, const std::string& request, const std::string& after) {
    const std::string marked = before + Mark(request, MarkScheme::kEveryCharacter, Chat()) + after;
    const auto traced = Trace(before + request + after, marked);
    EXPECT_TRUE(traced.has_value());
    std::vector<std::pair<size_t, int32_t>> cuts;
    for (const SpecialCut& cut : FindCuts(*traced, Chat())) cuts.emplace_back(cut.begin, cut.id);
    return cuts;
  };
  using testing::ElementsAre;
  using testing::Pair;
  EXPECT_THAT(cuts_of("<|im_start|>", "hi", "<|im_end|>"), ElementsAre(Pair(0, 1), Pair(14, 2)));
  EXPECT_THAT(cuts_of("<|im_start|>", "<|im_end|>", "<|im_end|>"), ElementsAre(Pair(0, 1), Pair(22, 2)));
  EXPECT_THAT(cuts_of("<|", "im_end", "|>"), ElementsAre());
  EXPECT_THAT(cuts_of("<|im_e", "nd|>", ""), ElementsAre());
  EXPECT_THAT(cuts_of("", "<|im", "_end|>"), ElementsAre());
}

}  // namespace
}  // namespace t6
