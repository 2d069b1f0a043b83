// What every reader of a page relies on: where its parts lie, and that they are whole lines of 128 bytes.
#include "engine/backend/page_layout.h"

#include <gtest/gtest.h>

#include "tests/support/attention_world.h"

namespace t6::testing {
namespace {

size_t PageBytes(int h, int rank, DType dtype) {
  return PageLayout(MakeSpec(h, 64, 6, rank, rank), dtype).page_bytes();
}

TEST(PageLayoutTest, BytesOfKnownModels) {
  EXPECT_EQ(PageBytes(13, 2, DType::kBF16), 39424u);
  EXPECT_EQ(PageBytes(47, 2, DType::kBF16), 56832u);
  EXPECT_EQ(PageBytes(78, 2, DType::kBF16), 72704u);
  EXPECT_EQ(PageBytes(13, 2, DType::kF32), 2 * 39424u);
  // Half of it, and 4 bytes for each of 64 tokens and 4 ranks.
  EXPECT_EQ(PageBytes(13, 2, DType::kFp8), 39424u / 2 + 1024);
  EXPECT_EQ(PageBytes(47, 2, DType::kFp8), 56832u / 2 + 1024);
  EXPECT_EQ(PageBytes(78, 2, DType::kFp8), 72704u / 2 + 1024);
}

TEST(PageLayoutTest, PartsFollowEachOtherInWholeLines) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kFp8}) {
    for (const int h : {1, 5, 13}) {
      const PageLayout layout(MakeSpec(h, 21, 6, 3, 1), dtype);
      size_t end = 0;
      for (const PagePart& part : layout.parts()) {
        EXPECT_EQ(part.offset, end);
        EXPECT_EQ(part.bytes % 128, 0u);
        const size_t used = static_cast<size_t>(part.ranks) * part.rows * part.width * SizeOf(part.dtype);
        EXPECT_GE(part.bytes, used);
        EXPECT_LT(part.bytes, used + 128);
        end = part.offset + part.bytes;
      }
      EXPECT_EQ(layout.page_bytes(), end);
    }
  }
}

TEST(PageLayoutTest, AnFp8PageHasItsScalesBehindA) {
  const PageLayout layout(MakeSpec(5, 64, 6, 2, 1), DType::kFp8);
  const PagePart &ak = layout.part(PartName::kAK), &sk = layout.part(PartName::kSK);
  EXPECT_EQ(ak.bytes, 640u);  // 2 ranks of 5 heads
  EXPECT_EQ(sk.offset, ak.offset + ak.bytes);
  EXPECT_EQ(sk.bytes, 2 * 64 * sizeof(float));
  EXPECT_EQ(sk.dtype, DType::kF32);
  EXPECT_EQ(layout.part(PartName::kAV).bytes, 384u);  // 5 heads of 64 bytes, padded
  EXPECT_EQ(layout.part(PartName::kSV).bytes, 64 * sizeof(float));
}

}  // namespace
}  // namespace t6::testing
