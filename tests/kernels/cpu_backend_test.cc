#include "engine/backend/cpu/cpu_backend.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "engine/tensor/dtype.h"

namespace t6 {
namespace {

std::unique_ptr<Backend> Make(int threads = 2) {
  auto backend = MakeCpuBackend(threads);
  EXPECT_TRUE(backend.ok()) << backend.status();
  return std::move(backend).value();
}

AttentionSpec Spec() {
  AttentionSpec spec;
  spec.n_heads = 3, spec.head_dim = 8, spec.rotary_dim = 8;
  spec.q.rank = 2, spec.k.rank = 2, spec.v.rank = 1;
  return spec;
}

constexpr StepLimits kLimits{.max_rows = 8, .max_sequences = 4, .max_outputs = 8, .max_context = 64};

// A plan of `ids`, one sequence in page 0, all of whose rows give an output.
StepPlan PlanOf(const std::vector<int32_t>& ids) {
  StepPlan plan;
  plan.Clear();
  for (int32_t i = 0; i < static_cast<int32_t>(ids.size()); ++i) {
    plan.token_ids.push_back(ids[i]);
    plan.positions.push_back(i);
    plan.slots.push_back(i);
    plan.output_rows.push_back(i);
    SamplingRow row;
    row.temperature = 0;
    plan.sampling.push_back(row);
  }
  plan.row_begin.push_back(static_cast<int32_t>(ids.size()));
  plan.context_len.push_back(static_cast<int32_t>(ids.size()));
  plan.page_ids.push_back(0);
  plan.page_begin.push_back(1);
  return plan;
}

TEST(CpuBackendTest, SaysWhatItIs) {
  const auto backend = Make(2);
  EXPECT_EQ(backend->info().kind, "cpu");
  EXPECT_NE(backend->info().description.find("2 threads"), std::string::npos) << backend->info().description;
  EXPECT_GT(backend->info().memory_available, size_t{1} << 20);
  EXPECT_FALSE(MakeCpuBackend(-1).ok());
  EXPECT_FALSE(MakeCpuBackend(1 << 20).ok());
  EXPECT_TRUE(MakeCpuBackend(0).ok());
}

TEST(CpuBackendTest, AllocatesZeroedMemoryAndUploads) {
  const auto backend = Make();
  auto buffer = backend->Allocate(1000);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ((*buffer)->size(), 1000u);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ((*buffer)->as<uint8_t>()[i], 0);
  const std::string text = "factors";
  ASSERT_TRUE(backend->Upload((*buffer)->as<uint8_t>() + 3, text.data(), text.size()).ok());
  EXPECT_EQ(std::memcmp((*buffer)->as<uint8_t>() + 3, text.data(), text.size()), 0);
}

TEST(CpuBackendTest, EmbedsTokensOfThePlanAndOfTheStepBefore) {
  const auto backend = Make();
  constexpr int kVocab = 50, kWidth = 37;
  ASSERT_TRUE(backend->Reserve(kLimits, Spec(), kWidth).ok());
  std::vector<float> table(kVocab * kWidth);
  for (size_t i = 0; i < table.size(); ++i) table[i] = RoundToBf16(static_cast<float>(i) * 0.01f);
  std::vector<bf16> table16(table.size());
  for (size_t i = 0; i < table.size(); ++i) table16[i] = ToBf16(table[i]);
  const StepPlan first = PlanOf({4, 49, 0});
  ASSERT_TRUE(backend->BeginStep(first, Spec()).ok());
  for (const bool half : {false, true}) {
    std::vector<float> out(3 * kWidth);
    EmbedParams p{half ? static_cast<const void*>(table16.data()) : table.data(),
                  half ? DType::kBF16 : DType::kF32, kWidth, out.data()};
    ASSERT_TRUE(backend->Embed(p).ok());
    for (int r = 0; r < 3; ++r) {
      for (int i = 0; i < kWidth; ++i) ASSERT_EQ(out[r * kWidth + i], table[first.token_ids[r] * kWidth + i]);
    }
  }
  // The step samples 7, 8 and 9; the next one names the second of them as -2.
  std::vector<float> logits(3 * kVocab, 0.0f);
  for (int r = 0; r < 3; ++r) logits[r * kVocab + 7 + r] = 5.0f;
  ASSERT_TRUE(backend->Sample({logits.data(), kVocab, kVocab}).ok());
  const auto result = backend->WaitSample();
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result->outputs.size(), 3u);
  EXPECT_EQ(result->outputs[1].token, 8);
  const StepPlan second = PlanOf({-2});
  ASSERT_TRUE(backend->BeginStep(second, Spec()).ok());
  std::vector<float> out(kWidth);
  ASSERT_TRUE(backend->Embed({table.data(), DType::kF32, kWidth, out.data()}).ok());
  for (int i = 0; i < kWidth; ++i) ASSERT_EQ(out[i], table[8 * kWidth + i]);
}

TEST(CpuBackendTest, CopiesValidTokensZeroesTheRestAndClears) {
  const auto backend = Make();
  const AttentionSpec spec = Spec();
  ASSERT_TRUE(backend->Reserve(kLimits, spec, /*width=*/32).ok());
  constexpr int kLayers = 3, kPages = 4, kValid = 19;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const PageLayout layout(spec, dtype);
    std::vector<uint8_t> pages(kLayers * kPages * layout.page_bytes());
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<uint8_t>(i * 7 + 1) | 1;  // never zero
    const std::vector<uint8_t> before = pages;
    StepPlan plan = PlanOf({1});
    plan.copy_pages = {{0, 2, kValid}, {1, 3, kPageTokens}};
    plan.clear_pages = {1};
    ASSERT_TRUE(backend->BeginStep(plan, spec).ok());
    ASSERT_TRUE(backend->CopyAndClearPages({pages.data(), &layout, kLayers, kPages}).ok());
    const size_t size = SizeOf(dtype);
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto page = [&](std::vector<uint8_t> const& all, int id) {
        return all.data() + (layer * kPages + id) * layout.page_bytes();
      };
      EXPECT_EQ(std::memcmp(page(pages, 0), page(before, 0), layout.page_bytes()), 0) << "the source changed";
      EXPECT_EQ(std::memcmp(page(pages, 3), page(before, 1), layout.page_bytes()), 0);
      for (size_t i = 0; i < layout.page_bytes(); ++i) ASSERT_EQ(page(pages, 1)[i], 0);
      for (const PagePart& part : layout.parts()) {
        const bool token_minor = part.name == PartName::kAK || part.name == PartName::kAV;
        for (int i = 0; i < part.ranks * part.rows * part.width; ++i) {
          const int token = token_minor ? i % part.width : i / part.width % part.rows;
          const size_t offset = part.offset + i * size;
          const bool same = std::memcmp(page(pages, 2) + offset, page(before, 0) + offset, size) == 0;
          const uint8_t zeros[4] = {};
          const bool zero = std::memcmp(page(pages, 2) + offset, zeros, size) == 0;
          ASSERT_TRUE(token < kValid ? same : zero)
              << "part " << static_cast<int>(part.name) << ", token " << token;
        }
      }
    }
  }
}

}  // namespace
}  // namespace t6
