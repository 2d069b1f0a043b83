#include "engine/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace t6 {
namespace {

TEST(RopeTest, PositionZeroDoesNotRotate) {
  const RopeTable table = MakeRopeTable(1, 64, 10000.0f, true);
  ASSERT_EQ(table.cos.size(), 32u);
  for (float c : table.cos) EXPECT_EQ(c, 1.0f);
  for (float s : table.sin) EXPECT_EQ(s, 0.0f);
}

// What the official code's table holds at the one entry where the exact value is a tie (docs/factors.md):
// ours rounds to even, the reference has 0.70703125.
TEST(RopeTest, TheKnownTieRoundsToEven) {
  const RopeTable table = MakeRopeTable(747, 64, 10000.0f, true);
  EXPECT_EQ(table.sin[746 * 32 + 20], 0.703125f);
}

TEST(RopeTest, EntriesAreTheRoundedFunctionsOfFloat32Angles) {
  for (bool rounded : {false, true}) {
    const RopeTable table = MakeRopeTable(1000, 32, 10000.0f, rounded);
    for (int t : {1, 17, 511, 999}) {
      for (int i = 0; i < 16; ++i) {
        const float inv = static_cast<float>(1.0f / static_cast<float>(std::pow(10000.0, 2.0 * i / 32)));
        const double want = std::cos(static_cast<double>(static_cast<float>(t) * inv));
        EXPECT_NEAR(table.cos[t * 16 + i], want, rounded ? 0.002 : 1e-7) << "t " << t << " i " << i;
      }
    }
  }
}

}  // namespace
}  // namespace t6
