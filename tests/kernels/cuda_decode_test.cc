// Decode attention on a GPU against float64, with the kernels of Hopper and with the portable ones. Without a
// GPU of the kind, every test here but the first is skipped.
#include "tests/kernels/cuda_decode_world.h"

namespace t6::testing {
namespace {

// Weights and values are rounded to bfloat16 (2^-9 each at worst, a third of that on average).
constexpr double kTolerance = 0.004;

// Needs no GPU: an H200's numbers.
TEST(CudaDecodeConfig, FitsTheMultiprocessorOrRefuses) {
  constexpr cuda::DecodeDevice kH200{132, 228 << 10, false};
  constexpr int kPerBlock = 227 << 10;
  int n_refused = 0;
  for (const int d : {32, 64, 128}) {
    for (const int rank : {1, 2, 3, 4}) {
      for (int h = 1; h <= 128; ++h) {
        const cuda::DecodeShape shape{h, d, rank, 6, d, 1.0f, false, 0.0f};
        const auto config = cuda::DecodeAttentionConfig::Make(shape, kH200);
        n_refused += !config;
        if (!config) continue;
        EXPECT_GE(config->n_stages, 2);
        EXPECT_GE(config->stage_bytes, shape.half_rows() * 128);
        EXPECT_EQ(0, config->stage_bytes % 1024);
        EXPECT_LE(config->shared_bytes, kPerBlock);
        EXPECT_GE(config->head_tiles * 16, h);
        EXPECT_LE(config->max_in_flight, config->n_stages);
        EXPECT_LE(config->first_in_flight, config->max_in_flight);
      }
    }
  }
  EXPECT_EQ(32 + 64, n_refused);  // docs/kernels.md: ranks 3 and 4 of large heads
  EXPECT_FALSE(cuda::DecodeAttentionConfig::Make({47, 96, 2, 6, 96, 1.0f, false, 0.0f}, kH200));
  EXPECT_FALSE(cuda::DecodeAttentionConfig::Make({47, 64, 5, 6, 64, 1.0f, false, 0.0f}, kH200));
  EXPECT_FALSE(cuda::DecodeAttentionConfig::Make({129, 64, 1, 6, 64, 1.0f, false, 0.0f}, kH200));
}

// Every head count of the ranks that there are fp8 kernels for, in halves that are those of the page's
// layout.
TEST(CudaDecodeConfig, Fp8FitsTheMultiprocessorAndThePage) {
  constexpr cuda::DecodeDevice kH200{132, 228 << 10, false};
  for (const int rank : {1, 2}) {
    for (int h = 1; h <= 128; ++h) {
      const cuda::DecodeShape shape{h, 64, rank, 6, 64, 1.0f, false, 0.0f, true};
      const auto config = cuda::DecodeAttentionConfig::Make(shape, kH200);
      ASSERT_TRUE(config) << "rank " << rank << " h " << h;
      EXPECT_GE(config->n_stages, 4);
      EXPECT_EQ(0, config->stage_bytes % 1024);
      EXPECT_LE(config->shared_bytes, 227 << 10);
      const PageLayout layout(CudaDecodeWorld::Spec({h, 64, rank, 6, {}}), DType::kFp8);
      EXPECT_EQ(layout.page_bytes(), shape.page_bytes()) << "rank " << rank << " h " << h;
      EXPECT_EQ(layout.part(PartName::kBV).offset, shape.page_bytes() / 2);
    }
  }
  EXPECT_FALSE(cuda::DecodeAttentionConfig::Make({47, 64, 3, 6, 64, 1.0f, false, 0.0f, true}, kH200));
  EXPECT_FALSE(cuda::DecodeAttentionConfig::Make({47, 128, 2, 6, 128, 1.0f, false, 0.0f, true}, kH200));
}

class CudaDecode : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const int major = ComputeCapability();
    if (portable() ? major < 8 : major != 9) GTEST_SKIP() << "no GPU of this kind";
  }

  static bool portable() { return GetParam(); }
  static CudaDecodeWorld World(CudaDecodeCase c, uint32_t seed = 1) {
    c.portable = portable();
    return {c, seed};
  }
  static double ErrorOf(const CudaDecodeCase& c) {
    CudaDecodeWorld world = World(c);
    const std::vector<float> out = world.Run();
    return out.empty() ? INFINITY : world.Error(out);
  }
};

TEST_P(CudaDecode, RaggedBatchOfTheShapesOfThePaper) {
  const std::vector<int> lengths = {1, 63, 64, 65, 700, 1500, 3, 128};
  for (const int h : {13, 22, 34, 47, 61, 78}) {
    EXPECT_LT(ErrorOf({h, 64, 2, 6, lengths}), kTolerance) << "h " << h;
  }
  for (const int h : {5, 16, 31, 32, 48}) {
    EXPECT_LT(ErrorOf({h, 64, 1, 16, lengths}), kTolerance) << "h " << h;
  }
}

TEST_P(CudaDecode, OtherRanksAndWidths) {
  const std::vector<int> lengths = {1, 63, 130, 450};
  for (const int rank : {3, 4}) {
    for (const int h : {13, 47, 61})
      EXPECT_LT(ErrorOf({h, 64, rank, 6, lengths}), kTolerance) << rank << " h " << h;
  }
  for (const int rank : {1, 2, 3, 4}) {
    for (const int h : {13, 61, 128})
      EXPECT_LT(ErrorOf({h, 32, rank, 6, lengths}), kTolerance) << rank << " h " << h;
  }
  for (const int rank : {1, 2, 3, 4}) {
    for (const int h : {13, 64, rank <= 2 ? 128 : 32})
      EXPECT_LT(ErrorOf({h, 128, rank, 6, lengths}), kTolerance) << rank << " h " << h;
  }
  EXPECT_LT(ErrorOf({128, 64, 1, 6, lengths}), kTolerance);
  EXPECT_LT(ErrorOf({128, 64, 2, 6, lengths}), kTolerance);
}

// Shares of more pages than a ring has stages and than a block's plan lists: everything wraps.
TEST_P(CudaDecode, LongShares) {
  for (const int h : {47, 78}) {
    CudaDecodeCase c{h, 64, 2, 6, {4000, 900}};
    c.n_blocks = 2;
    EXPECT_LT(ErrorOf(c), kTolerance) << "h " << h;
  }
}

TEST_P(CudaDecode, FullQuery) {
  EXPECT_LT(ErrorOf({47, 64, 2, 0, {200, 1000, 77}}), kTolerance);
  EXPECT_LT(ErrorOf({32, 64, 1, 0, {200, 1000, 77}}), kTolerance);
}

TEST_P(CudaDecode, PartialRotation) {
  for (const int rotary : {0, 20, 42}) {
    CudaDecodeCase c{47, 64, 2, 6, {300, 90}};
    c.rotary_dim = rotary;
    EXPECT_LT(ErrorOf(c), kTolerance) << "rotary " << rotary;
  }
}

TEST_P(CudaDecode, SequencesWithoutTokensAreLeftOut) {
  EXPECT_LT(ErrorOf({47, 64, 2, 6, {0, 300, 0, 0, 90, 0}}), kTolerance);
  CudaDecodeCase one_block{47, 64, 2, 6, {0, 300, 0, 0, 90, 0}};
  one_block.n_blocks = 1;
  EXPECT_LT(ErrorOf(one_block), kTolerance);
}

// Batches whose pages are no multiple of the blocks: shares that end with a sequence, shares that do not, and
// sequences that begin in the last page of a share.
TEST_P(CudaDecode, RandomBatches) {
  std::mt19937 random(3);
  for (int i = 0; i < 12; ++i) {
    CudaDecodeCase c{13, 64, 1 + i % 2, 6, {}};
    const int n = 1 + static_cast<int>(random() % 40), longest = i % 3 == 0 ? 900 : 200;
    for (int s = 0; s < n; ++s) c.lengths.push_back(static_cast<int>(random() % longest));
    c.lengths.push_back(1);
    if (i % 4 == 1) c.n_blocks = 1 + static_cast<int>(random() % 60);
    EXPECT_LT(ErrorOf(c), kTolerance) << "batch " << i;
  }
}

TEST_P(CudaDecode, FewerPagesThanBlocks) { EXPECT_LT(ErrorOf({47, 64, 2, 6, {10}}), kTolerance); }

TEST_P(CudaDecode, ManySequencesInOneBlock) {
  CudaDecodeCase c{47, 64, 2, 6, {}};
  for (int i = 0; i < 60; ++i) c.lengths.push_back(1 + i * 37 % 150);
  for (const int n_blocks : {1, 3, 50}) {
    c.n_blocks = n_blocks;
    EXPECT_LT(ErrorOf(c), kTolerance) << n_blocks << " blocks";
  }
}

// fp8 pages hold what the reference rounds to, so that the arithmetic alone is left: half precision's.
TEST_P(CudaDecode, Fp8PagesOfEveryShape) {
  const std::vector<int> lengths = {1, 63, 64, 65, 700, 1500, 3, 128};
  for (const int rank : {1, 2}) {
    for (const int h : {5, 13, 16, 32, 47, 48, 61, 78, 97, 128}) {
      CudaDecodeCase c{h, 64, rank, 6, lengths};
      c.fp8 = true;
      EXPECT_LT(ErrorOf(c), kTolerance / 2) << "rank " << rank << " h " << h;
    }
  }
}

TEST_P(CudaDecode, Fp8PagesInEverySituation) {
  CudaDecodeCase c{47, 64, 2, 6, {4000, 900}};
  c.fp8 = true, c.n_blocks = 2;
  EXPECT_LT(ErrorOf(c), kTolerance / 2) << "long shares";
  c = {47, 64, 2, 0, {200, 1000, 77}};
  c.fp8 = true;
  EXPECT_LT(ErrorOf(c), kTolerance / 2) << "full query";
  c = {47, 64, 2, 6, {300, 90}};
  c.fp8 = true, c.rotary_dim = 42, c.head_norm = true;
  EXPECT_LT(ErrorOf(c), kTolerance / 2) << "partial rotation, head norm";
  c = {47, 64, 2, 6, {}};
  c.fp8 = true;
  for (int i = 0; i < 60; ++i) c.lengths.push_back(1 + i * 37 % 150);
  for (const int n_blocks : {1, 3, 50}) {
    c.n_blocks = n_blocks;
    EXPECT_LT(ErrorOf(c), kTolerance / 2) << n_blocks << " blocks";
  }
  for (const float scale : {0.02f, 2.0f}) {  // nearly flat; logits of some hundreds
    c = {47, 64, 2, 6, {1200, 400}};
    c.fp8 = true, c.scale = scale;
    EXPECT_LT(ErrorOf(c), kTolerance * (scale > 1 ? 4 : 0.5)) << "scale " << scale;
  }
}

TEST_P(CudaDecode, HeadNorm) {
  CudaDecodeCase c{47, 64, 2, 6, {1000, 64, 5}};
  c.head_norm = true;
  EXPECT_LT(ErrorOf(c), kTolerance);
  c.n_blocks = 1;  // every sequence in one segment
  EXPECT_LT(ErrorOf(c), kTolerance);
}

TEST_P(CudaDecode, SharpAttentionRescales) {
  CudaDecodeCase c{47, 64, 2, 6, {1200, 400}};
  c.scale = 2.0f;  // logits of some hundreds
  EXPECT_LT(ErrorOf(c), 2 * kTolerance);
}

TEST_P(CudaDecode, StartsBeforeTheKernelInFront) {
  CudaDecodeCase c{47, 64, 2, 6, {1200, 400}};
  c.overlaps_prior = true;
  EXPECT_LT(ErrorOf(c), kTolerance);
}

TEST_P(CudaDecode, PutsTheNewTokensWhereTheyBelongAndAttendsToThem) {
  for (const int rank : {1, 2, 4}) {
    for (const int d : {32, 64, 128}) {
      CudaDecodeCase c{rank == 2 ? 61 : 13, d, rank, 6, {1, 63, 64, 65, 700, 128, 3}};
      c.stores = true;
      EXPECT_LT(ErrorOf(c), kTolerance) << "rank " << rank << " d " << d;
      c.rank_q = 0, c.rotary_dim = 20, c.n_blocks = 2, c.overlaps_prior = true;
      EXPECT_LT(ErrorOf(c), kTolerance) << "rank " << rank << " d " << d << ", full query";
    }
  }
}

TEST_P(CudaDecode, TheSameBitsEveryTime) {
  for (const bool fp8 : {false, true}) {
    CudaDecodeCase c{47, 64, 2, 6, {1500, 700, 30}};
    c.fp8 = fp8;
    CudaDecodeWorld world = World(c, 5);
    const std::vector<float> first = world.Run();
    for (int i = 0; i < 20; ++i) {
      ASSERT_EQ(0, std::memcmp(first.data(), world.Run().data(), first.size() * sizeof(float)))
          << "run " << i << ", fp8 " << fp8;
    }
  }
}

TEST_P(CudaDecode, FixedSplitsGiveTheSameBitsInEveryBatch) {
  // Sequence 0 draws its factors first, so it is the same in both. An odd count of pages: warpgroups that
  // take pages in turn begin segments in either order.
  for (const bool fp8 : {false, true}) {
    CudaDecodeCase alone{47, 64, 2, 6, {1500}}, batch{47, 64, 2, 6, {1500, 1, 900, 64}};
    alone.fixed_split_pages = batch.fixed_split_pages = fp8 ? 7 : 8;
    alone.fp8 = batch.fp8 = fp8, batch.n_blocks = 5;
    const size_t width = 47 * 64;
    CudaDecodeWorld a = World(alone, 9), b = World(batch, 9);
    const std::vector<float> x = a.Run(), y = b.Run();
    EXPECT_LT(a.Error(x), kTolerance) << fp8;
    EXPECT_LT(b.Error(y), kTolerance) << fp8;
    EXPECT_EQ(0, std::memcmp(x.data(), y.data(), width * sizeof(float))) << fp8;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaDecode, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Portable" : "Sm90a"; });

TEST(CudaStore, WritesEveryFactorToItsPlace) {
  if (ComputeCapability() < 8) GTEST_SKIP() << "no GPU";
  for (const int rank : {1, 2, 4}) {
    for (const int d : {32, 64, 128}) {
      CudaDecodeCase c{13, d, rank, 6, {300, 1, 64}};  // rows by the block
      EXPECT_EQ(0, CudaDecodeWorld(c, 3).StoreMismatches()) << "rank " << rank << " d " << d;
      c.rotary_dim = 20, c.lengths = {70, 1};  // a block a row
      EXPECT_EQ(0, CudaDecodeWorld(c, 3).StoreMismatches()) << "rank " << rank << " d " << d << " partial";
    }
  }
}

}  // namespace
}  // namespace t6::testing
