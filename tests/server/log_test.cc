#include "server/log.h"

#include <gtest/gtest.h>

namespace t6::server {
namespace {

TEST(LogThrottle, TellsHowManyCameSinceTheLastLine) {
  LogThrottle throttle(absl::Seconds(10));
  const absl::Time start = absl::FromUnixSeconds(1000);
  EXPECT_EQ(throttle.Count(start), 1) << "the first one at once";
  for (int i = 0; i < 5; ++i) EXPECT_EQ(throttle.Count(start + absl::Seconds(i)), 0);
  EXPECT_EQ(throttle.Count(start + absl::Seconds(10)), 6);
  EXPECT_EQ(throttle.Count(start + absl::Seconds(19)), 0);
  EXPECT_EQ(throttle.Count(start + absl::Seconds(60)), 2);
}

}  // namespace
}  // namespace t6::server
