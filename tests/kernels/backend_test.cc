// What every device does alike, besides arithmetic: memory, embedding, pages.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "engine/tensor/dtype.h"
#include "tests/kernels/backend_world.h"

namespace t6::testing {
namespace {

constexpr StepLimits kLimits{.max_rows = 32, .max_sequences = 4, .max_outputs = 32, .max_context = 64};

class BackendTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!on_.Make(GetParam())) GTEST_SKIP() << on_.reason();
  }
  OnDevice on_;
};

TEST_P(BackendTest, SaysWhatItIs) {
  EXPECT_EQ(on_->info().kind, GetParam());
  EXPECT_FALSE(on_->info().description.empty());
  EXPECT_GT(on_->info().memory_available, size_t{1} << 20);
  if (GetParam() == "cpu") {
    EXPECT_NE(on_->info().description.find("2 threads"), std::string::npos) << on_->info().description;
    EXPECT_FALSE(MakeBackend({.device = "cpu", .threads = -1}).ok());
    EXPECT_FALSE(MakeBackend({.device = "cpu", .threads = 1 << 20}).ok());
    EXPECT_TRUE(MakeBackend({.device = "cpu", .threads = 0}).ok());
  }
}

TEST_P(BackendTest, AllocatesZeroedMemoryAndUploads) {
  auto buffer = on_->Allocate(1000);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ((*buffer)->size(), 1000u);
  uint8_t* data = (*buffer)->as<uint8_t>();
  EXPECT_EQ(on_.Get(data, 1000), std::vector<uint8_t>(1000, 0));
  const std::string text = "factors";
  ASSERT_TRUE(on_->Upload(data + 3, text.data(), text.size()).ok());
  const std::vector<uint8_t> got = on_.Get(data + 3, text.size());
  EXPECT_EQ(std::string(got.begin(), got.end()), text);
}

TEST_P(BackendTest, EmbedsTokensOfThePlanAndOfTheStepBefore) {
  constexpr int kVocab = 50, kWidth = 37;
  ASSERT_TRUE(on_->Reserve(kLimits, SmallSpec(), {.width = kWidth, .mlp_width = 40, .vocab = kVocab}).ok());
  std::vector<float> table(kVocab * kWidth);
  for (size_t i = 0; i < table.size(); ++i) table[i] = RoundToBf16(static_cast<float>(i) * 0.01f);
  std::vector<bf16> table16(table.size());
  for (size_t i = 0; i < table.size(); ++i) table16[i] = ToBf16(table[i]);
  const float* wide = on_.Put(table);
  const bf16* narrow = on_.Put(table16);
  float* out = on_.Put(std::vector<float>(20 * kWidth));
  // Few rows and many: another path where there are two.
  for (const int n : {3, 20}) {
    std::vector<int32_t> ids;
    for (int i = 0; i < n; ++i) ids.push_back((4 + 45 * i) % kVocab);
    // The step samples 7, 8 and so on; the next one names the second of them as -2.
    std::vector<float> logits(n * kVocab, 0.0f);
    for (int r = 0; r < n; ++r) logits[r * kVocab + 7 + r] = 5.0f;
    const SampleParams sample{on_.Put(logits), kVocab, kVocab};
    const auto embed = [&](const StepPlan& plan, const EmbedParams& params) {
      ASSERT_TRUE(on_->BeginStep(plan, SmallSpec()).ok());
      ASSERT_TRUE(on_->Embed(params).ok());
      ASSERT_TRUE(on_->Sample(sample).ok());
      const auto result = on_->WaitSample();
      ASSERT_TRUE(result.ok()) << result.status();
      ASSERT_EQ(result->outputs.size(), plan.output_rows.size());
      EXPECT_EQ(result->outputs.back().token, 6 + static_cast<int>(plan.output_rows.size()));
    };
    for (const bool half : {false, true}) {
      embed(PlanOf(ids),
            {half ? static_cast<const void*>(narrow) : wide, half ? DType::kBF16 : DType::kF32, kWidth, out});
      const std::vector<float> got = on_.Get(out, n * kWidth);
      for (int r = 0; r < n; ++r) {
        for (int i = 0; i < kWidth; ++i) ASSERT_EQ(got[r * kWidth + i], table[ids[r] * kWidth + i]);
      }
    }
    embed(PlanOf({-2}), {wide, DType::kF32, kWidth, out});
    const std::vector<float> got = on_.Get(out, kWidth);
    for (int i = 0; i < kWidth; ++i) ASSERT_EQ(got[i], table[8 * kWidth + i]);
  }
}

TEST_P(BackendTest, AShapeWithoutKernelIsRefusedAtLoad) {
  if (GetParam() == "cpu") GTEST_SKIP() << "takes every shape";
  AttentionSpec spec = SmallSpec();
  spec.head_dim = 512;
  const Status status = on_->Reserve(kLimits, spec, {.width = 32, .mlp_width = 40, .vocab = 50});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_NE(status.message().find("512"), absl::string_view::npos) << status;
}

// The operator is told; a shape that the paper's models have is none of them.
TEST_P(BackendTest, AttentionWithoutAKernelOfItsOwnIsNamed) {
  AttentionSpec usual;
  usual.n_heads = 47, usual.head_dim = usual.rotary_dim = 64;
  usual.q.rank = 6, usual.k.rank = usual.v.rank = 2;
  const auto slow = [&](const AttentionSpec& spec, DType pages) { return on_->SlowAttention(spec, pages); };
  EXPECT_EQ(slow(usual, DType::kBF16), "");
  EXPECT_EQ(slow(usual, DType::kFp8), "");
  if (GetParam() == "cpu") {
    EXPECT_EQ(slow(SmallSpec(), DType::kF32), "");
    return;
  }
  EXPECT_EQ(slow(usual, DType::kF32), "47 heads of 64, ranks 2 and 2, over f32 pages");
  EXPECT_EQ(slow(SmallSpec(), DType::kBF16), "3 heads of 8, ranks 2 and 1, over bf16 pages");
  usual.head_dim = usual.rotary_dim = 128;
  EXPECT_NE(slow(usual, DType::kBF16).find("prompts"), std::string::npos) << slow(usual, DType::kBF16);
}

TEST_P(BackendTest, CopiesValidTokensZeroesTheRestAndClears) {
  const AttentionSpec spec = SmallSpec();
  ASSERT_TRUE(on_->Reserve(kLimits, spec, {.width = 32, .mlp_width = 40, .vocab = 50}).ok());
  constexpr int kLayers = 3, kPages = 4;
  for (const int valid : {1, 18, 19, 63}) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kFp8}) {
      const PageLayout layout(spec, dtype);
      std::vector<uint8_t> before(kLayers * kPages * layout.page_bytes());
      for (size_t i = 0; i < before.size(); ++i) before[i] = static_cast<uint8_t>(i * 7 + 1) | 1;  // not zero
      uint8_t* base = on_.Put(before);
      StepPlan plan = PlanOf({1});
      plan.copy_pages = {{0, 2, valid}, {1, 3, kPageTokens}};
      plan.clear_pages = {1};
      ASSERT_TRUE(on_->BeginStep(plan, spec).ok());
      ASSERT_TRUE(on_->CopyAndClearPages({base, &layout, kLayers, kPages}).ok());
      const std::vector<uint8_t> pages = on_.Get(base, before.size());
      for (int layer = 0; layer < kLayers; ++layer) {
        const auto page = [&](std::vector<uint8_t> const& all, int id) {
          return all.data() + (layer * kPages + id) * layout.page_bytes();
        };
        EXPECT_EQ(std::memcmp(page(pages, 0), page(before, 0), layout.page_bytes()), 0) << "source changed";
        EXPECT_EQ(std::memcmp(page(pages, 3), page(before, 1), layout.page_bytes()), 0);
        for (size_t i = 0; i < layout.page_bytes(); ++i) ASSERT_EQ(page(pages, 1)[i], 0);
        for (const PagePart& part : layout.parts()) {
          const size_t size = SizeOf(part.dtype);
          for (int i = 0; i < part.ranks * part.rows * part.width; ++i) {
            const int token = part.token_minor ? i % part.width : i / part.width % part.rows;
            const size_t offset = part.offset + i * size;
            const bool same = std::memcmp(page(pages, 2) + offset, page(before, 0) + offset, size) == 0;
            const uint8_t zeros[4] = {};
            const bool zero = std::memcmp(page(pages, 2) + offset, zeros, size) == 0;
            ASSERT_TRUE(token < valid ? same : zero)
                << "part " << static_cast<int>(part.name) << ", token " << token << " of " << valid;
          }
        }
      }
      std::vector<float> logits(50, 0.0f);
      ASSERT_TRUE(on_->Sample({on_.Put(logits), 50, 50}).ok());
      ASSERT_TRUE(on_->WaitSample().ok());
    }
  }
}

// A kernel that touches memory that is not there takes the process's GPU with it: in a process of its own.
using BackendDeathTest = BackendTest;
TEST_P(BackendDeathTest, AFaultOnTheDeviceIsAStatusFromThenOn) {
  if (GetParam() == "cpu") GTEST_SKIP() << "checks its own memory";
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto fault = [] {
    OnDevice on;
    if (!on.Make("cuda")) return 1;
    constexpr int kWidth = 64;
    if (!on->Reserve(kLimits, SmallSpec(), {.width = kWidth, .mlp_width = 64, .vocab = 50}).ok()) return 2;
    const float* table = on.Put(std::vector<float>(50 * kWidth));
    float* out = on.Put(std::vector<float>(kWidth));
    float* logits = on.Put(std::vector<float>(50));
    const StepPlan plan = PlanOf({1 << 30});
    const auto step = [&] {
      Status status = on->BeginStep(plan, SmallSpec());
      if (status.ok()) status = on->Embed({table, DType::kF32, kWidth, out});
      if (status.ok()) status = on->Sample({.logits = logits, .vocab = 50, .n_text_tokens = 50});
      return status.ok() ? on->WaitSample().status() : status;
    };
    const Status first = step(), second = step();
    fprintf(stderr, "%s\n", first.ToString().c_str());
    return first.ok() ? 3 : second.ok() ? 4 : 0;
  };
  EXPECT_EXIT(exit(fault()), ::testing::ExitedWithCode(0), "illegal memory access");
}

INSTANTIATE_TEST_SUITE_P(Devices, BackendDeathTest, ::testing::ValuesIn(Devices()),
                         [](const auto& info) { return info.param; });

INSTANTIATE_TEST_SUITE_P(Devices, BackendTest, ::testing::ValuesIn(Devices()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace t6::testing
