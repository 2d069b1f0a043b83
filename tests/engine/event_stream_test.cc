#include "engine/event_stream.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/support/patience.h"

namespace t6 {
namespace {

TokenEvent Tokens(std::vector<int32_t> ids, FinishReason finish = FinishReason::kNone) {
  TokenEvent event;
  for (int32_t id : ids) event.tokens.push_back({id, 0.0f, {}});
  event.finish = finish;
  return event;
}

std::vector<int32_t> Ids(const TokenEvent& event) {
  std::vector<int32_t> ids;
  for (const TokenOutput& token : event.tokens) ids.push_back(token.token);
  return ids;
}

TEST(EventStreamTest, UnreadEventsMergeIntoOne) {
  EventStream stream(1);
  TokenEvent first = Tokens({1});
  first.prompt_scores = {{7, -1.0f, {}}};
  stream.Push(std::move(first));
  stream.Push(Tokens({2, 3}));
  stream.Push(Tokens({4}, FinishReason::kLength));
  EXPECT_EQ(stream.unread_tokens(), 4u);
  TokenEvent event;
  ASSERT_TRUE(stream.Poll(&event));
  EXPECT_EQ(Ids(event), (std::vector<int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(event.prompt_scores.size(), 1u);
  EXPECT_EQ(event.finish, FinishReason::kLength);
  EXPECT_FALSE(stream.Poll(&event));
  EXPECT_EQ(stream.unread_tokens(), 0u);
}

TEST(EventStreamTest, TheListenerIsToldOncePerUnreadEvent) {
  EventStream stream(1);
  int calls = 0;
  stream.SetListener([&] { ++calls; });
  stream.Push(Tokens({1}));
  stream.Push(Tokens({2}));
  EXPECT_EQ(calls, 1);
  TokenEvent event;
  ASSERT_TRUE(stream.Poll(&event));
  stream.Push(Tokens({3}));
  EXPECT_EQ(calls, 2);
}

TEST(EventStreamTest, AListenerThatComesLateIsToldAtOnce) {
  EventStream stream(1);
  stream.Push(Tokens({1}));
  int calls = 0;
  stream.SetListener([&] { ++calls; });
  EXPECT_EQ(calls, 1);
  stream.SetListener(nullptr);
  stream.Push(Tokens({2}));
  EXPECT_EQ(calls, 1);
}

TEST(EventStreamTest, WaitEndsAtItsTimeout) {
  EventStream stream(1);
  TokenEvent event;
  EXPECT_FALSE(stream.Wait(&event, absl::Milliseconds(1)));
}

TEST(EventStreamTest, NothingIsLostBetweenTwoThreads) {
  constexpr int kTokens = 20000;
  EventStream stream(1);
  std::thread engine([&] {
    for (int i = 0; i < kTokens; ++i)
      stream.Push(Tokens({i}, i + 1 == kTokens ? FinishReason::kStop : FinishReason::kNone));
  });
  std::vector<int32_t> got;
  TokenEvent event;
  do {
    ASSERT_TRUE(stream.Wait(&event, kPatience));
    for (int32_t id : Ids(event)) got.push_back(id);
  } while (event.finish == FinishReason::kNone);
  engine.join();
  ASSERT_EQ(got.size(), static_cast<size_t>(kTokens));
  for (int i = 0; i < kTokens; ++i) ASSERT_EQ(got[i], i);
}

}  // namespace
}  // namespace t6
