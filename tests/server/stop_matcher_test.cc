#include "server/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace t6::server {
namespace {

struct Cut {
  std::string text;
  std::optional<std::string> match;
};

// What the matcher promises, said slowly: the first position where a stop string ends, and the longest that
// ends there.
Cut Expected(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* best = nullptr;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0 &&
          (best == nullptr || stop.size() > best->size())) {
        best = &stop;
      }
    }
    if (best != nullptr) return {text.substr(0, end - best->size()), *best};
  }
  return {text, std::nullopt};
}

Cut RunMatcher(const std::string& text, const std::vector<std::string>& stops, std::mt19937& random) {
  StopMatcher matcher(stops);
  Cut cut;
  size_t at = 0;
  while (at < text.size() && !matcher.match().has_value()) {
    const size_t n = 1 + random() % 4;
    matcher.Push(std::string_view(text).substr(at, n), &cut.text);
    at += n;
  }
  if (!matcher.match().has_value()) matcher.Flush(&cut.text);
  cut.match = matcher.match();
  return cut;
}

TEST(StopMatcher, AgreesWithTheSlowWayOnAnyCutOfAnyText) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    const auto word = [&](size_t most) {
      std::string s;
      for (size_t n = 1 + random() % most; s.size() < n;) s += static_cast<char>('a' + random() % 3);
      return s;
    };
    const std::string text = word(24);
    std::vector<std::string> stops;
    for (size_t n = random() % 4; stops.size() < n;) stops.push_back(word(5));
    const Cut expected = Expected(text, stops);
    const Cut got = RunMatcher(text, stops, random);
    ASSERT_EQ(got.text, expected.text) << text;
    ASSERT_EQ(got.match, expected.match) << text;
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStopString) {
  StopMatcher matcher({"END."});
  std::string out;
  matcher.Push("The EN", &out);
  EXPECT_EQ(out, "The ");
  matcher.Push("GLISH", &out);
  EXPECT_EQ(out, "The ENGLISH");
  matcher.Push(" END", &out);
  EXPECT_EQ(out, "The ENGLISH ");
  matcher.Push(". More", &out);
  EXPECT_EQ(out, "The ENGLISH ");
  EXPECT_EQ(matcher.match(), "END.");
}

}  // namespace
}  // namespace t6::server
