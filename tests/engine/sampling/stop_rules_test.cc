#include "engine/sampling/stop_rules.h"

#include <gtest/gtest.h>

#include <limits>

namespace t6 {
namespace {

SamplingParams Params(int max_tokens, std::vector<int32_t> stops = {}) {
  SamplingParams params;
  params.max_tokens = max_tokens;
  params.stop_token_ids = std::move(stops);
  return params;
}

TEST(StopRules, GoesOnUntilMaxTokens) {
  EXPECT_EQ(CheckStop(Params(3), 10, 2, 7, 100).finish, FinishReason::kNone);
  EXPECT_EQ(CheckStop(Params(3), 10, 3, 7, 100).finish, FinishReason::kLength);
  EXPECT_EQ(CheckStop(Params(3), 10, 3, 7, 100).stop_token, -1);
}

TEST(StopRules, AnyStopTokenEndsIt) {
  const StopDecision stop = CheckStop(Params(3, {5, 7}), 10, 1, 7, 100);
  EXPECT_EQ(stop.finish, FinishReason::kStop);
  EXPECT_EQ(stop.stop_token, 7);
  EXPECT_EQ(CheckStop(Params(3, {5, 7}), 10, 1, 6, 100).finish, FinishReason::kNone);
}

TEST(StopRules, AStopTokenGoesBeforeALength) {
  EXPECT_EQ(CheckStop(Params(1, {7}), 10, 1, 7, 11).finish, FinishReason::kStop);
}

TEST(StopRules, AFullContextEndsIt) {
  EXPECT_EQ(CheckStop(Params(100), 10, 5, 7, 16).finish, FinishReason::kNone);
  EXPECT_EQ(CheckStop(Params(100), 10, 6, 7, 16).finish, FinishReason::kLength);
}

TEST(StopRules, OutputLimitIsTheSmallerOfBoth) {
  EXPECT_EQ(OutputLimit(Params(5), 10, 100), 5);
  EXPECT_EQ(OutputLimit(Params(std::numeric_limits<int>::max()), 10, 100), 90);
  EXPECT_EQ(OutputLimit(Params(5), 100, 100), 0);
  EXPECT_EQ(OutputLimit(Params(0), 10, 100), 0);
}

}  // namespace
}  // namespace t6
