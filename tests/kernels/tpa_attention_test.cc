// Attention against its float64 twin, one body for every device: every instruction set of this CPU, or the
// kernels of a GPU, with every type of pages that it takes; ragged batches of decode rows and prefill chunks;
// and the promise that neither threads nor the batch change a bit of a result.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/attention_world.h"

namespace t6::testing {
namespace {

using Rows = AttentionWorld::Rows;

std::unique_ptr<AttentionUnderTest> MakeEngine(const AttentionTarget& target, const AttentionWorld& world,
                                               int max_rows, int n_threads = 1, bool fixed_splits = false) {
  auto attention = target.make(n_threads, fixed_splits);
  const Status status = attention->Reserve(world.limits(max_rows), world.spec());
  EXPECT_TRUE(status.ok()) << status.message();
  return attention;
}

// Every `stride`th row of the plan and each sequence's last is held against the reference; returns the worst
// error in units of the tolerance.
void Check(AttentionWorld& world, const std::vector<Rows>& rows, const StepPlan& plan,
           const std::vector<float>& out, double tolerance, int stride = 1) {
  const int h = world.spec().n_heads, d = world.spec().head_dim;
  double worst = 0.0;
  for (size_t s = 0; s < rows.size(); ++s) {
    for (int row = plan.row_begin[s]; row < plan.row_begin[s + 1]; ++row) {
      if ((row - plan.row_begin[s]) % stride != 0 && row + 1 != plan.row_begin[s + 1]) continue;
      std::vector<double> norms;
      const std::vector<double> expected = world.Expected(rows[s].sequence, plan.positions[row], &norms);
      for (int i = 0; i < h * d; ++i) {
        const double actual = out[static_cast<size_t>(row) * h * d + i];
        ASSERT_FALSE(std::isnan(actual))
            << "row " << row << " position " << plan.positions[row] << " head " << i / d;
        const double error = std::abs(actual - expected[i]) / (norms[i / d] * tolerance);
        ASSERT_LE(error, 1.0) << "row " << row << " position " << plan.positions[row] << " head " << i / d
                              << " column " << i % d << ": " << actual << " instead of " << expected[i];
        worst = std::max(worst, error);
      }
    }
  }
  // A path that computes in float32 over pages of bfloat16 stands at 1e-5.
  EXPECT_GT(worst, 1e-6) << "nothing was compared, or the tolerance is far too wide";
}

struct SpecCase {
  const char* name;
  AttentionSpec spec;
};

AttentionSpec WithHeadNorm(AttentionSpec spec) {
  spec.head_norm = true;
  return spec;
}

std::vector<SpecCase> Specs() {
  return {
      {"Shipped", MakeSpec(13, 64, 6, 2, 2)},          {"HeadNorm", WithHeadNorm(MakeSpec(6, 64, 6, 2, 2))},
      {"RankOne", MakeSpec(5, 32, 1, 1, 1)},           {"ManyHeads", MakeSpec(47, 32, 6, 2, 2)},
      {"LargeHeads", MakeSpec(29, 128, 16, 1, 1)},     {"ManyRanks", MakeSpec(7, 48, 16, 16, 11)},
      {"UnequalRanks", MakeSpec(9, 128, 3, 1, 4)},     {"FullQuery", MakeSpec(11, 64, 0, 2, 2)},
      {"PartialRotary", MakeSpec(4, 64, 6, 2, 2, 20)}, {"NoRotary", MakeSpec(3, 16, 2, 3, 2, 0)},
      {"OddHeadDim", MakeSpec(3, 21, 2, 2, 2)},        {"OneHead", WithHeadNorm(MakeSpec(1, 80, 2, 2, 3))}};
}

struct TestCase {
  SpecCase spec;
  AttentionTarget target;
};

void PrintTo(const TestCase& c, std::ostream* out) { *out << c.target.name << "_" << c.spec.name; }

std::vector<TestCase> Cases() {
  std::vector<TestCase> cases;
  for (const AttentionTarget& target : AttentionTargets()) {
    for (const SpecCase& spec : Specs()) cases.push_back({spec, target});
  }
  return cases;
}

class AttentionOnEveryTarget : public ::testing::TestWithParam<TestCase> {
 protected:
  void SetUp() override {
    if (!GetParam().target.missing.empty()) GTEST_SKIP() << GetParam().target.missing;
  }
};

TEST_P(AttentionOnEveryTarget, RaggedBatchesMatchTheReference) {
  const AttentionTarget& target = GetParam().target;
  AttentionWorld world(GetParam().spec.spec, target.page, 64, 1024, 1);
  const auto attention = MakeEngine(target, world, 256);
  // Contexts before the step, at and around page and split borders, and rows of the step.
  const int context[] = {0, 63, 64, 300, 255, 0, 17, 250};
  const int added[] = {1, 1, 1, 1, 3, 70, 33, 15};
  std::vector<Rows> rows;
  for (int i = 0; i < 8; ++i) {
    world.AddSequence(context[i] + added[i]);
    if (context[i] > 0) world.Prefill(*attention, i, context[i]);
    rows.push_back({i, added[i]});
  }
  const StepPlan plan = world.MakePlan(rows);
  const std::vector<float> out = world.Run(*attention, plan);
  Check(world, rows, plan, out, target.tolerance(), 23);
}

// Decode alone, as a long answer's steps are: batches of every size, and contexts that grow.
TEST_P(AttentionOnEveryTarget, RandomBatchesOfDecodeRowsMatchTheReference) {
  const AttentionTarget& target = GetParam().target;
  AttentionWorld world(GetParam().spec.spec, target.page, 128, 1024, 7);
  const auto attention = MakeEngine(target, world, 256);
  std::mt19937 random(11);
  for (int i = 0; i < 9; ++i) {
    const int length = 1 + static_cast<int>(random() % (i % 4 == 0 ? 500 : 130));
    world.AddSequence(length + 3);
    world.Prefill(*attention, i, length);
  }
  for (const int batch : {1, 3, 9}) {
    std::vector<Rows> rows;
    for (int i = 0; i < batch; ++i) rows.push_back({i, 1});
    const StepPlan plan = world.MakePlan(rows);
    Check(world, rows, plan, world.Run(*attention, plan), target.tolerance());
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionOnEveryTarget, ::testing::ValuesIn(Cases()),
                         ::testing::PrintToStringParamName());

std::vector<AttentionTarget> BestTargets() {
  std::vector<AttentionTarget> best;
  for (const AttentionTarget& target : AttentionTargets()) {
    if (target.is_best) best.push_back(target);
  }
  return best;
}

class AttentionOnEveryPageType : public ::testing::TestWithParam<AttentionTarget> {
 protected:
  void SetUp() override {
    if (!GetParam().missing.empty()) GTEST_SKIP() << GetParam().missing;
  }
};

TEST_P(AttentionOnEveryPageType, ALongContextMatchesTheReference) {
  const AttentionTarget& target = GetParam();
  AttentionWorld world(MakeSpec(13, 64, 6, 2, 2), target.page, 40, 2100, 2);
  const auto attention = MakeEngine(target, world, 256, 2);
  world.AddSequence(2050);
  world.Prefill(*attention, 0, 2048);
  const std::vector<Rows> rows = {{0, 2}};
  const StepPlan plan = world.MakePlan(rows);
  Check(world, rows, plan, world.Run(*attention, plan), target.tolerance());
}

// Decode rows, short and long chunks: alone with one thread, together with others and more threads, in waves
// because slots are few, and with the shared pages read once: the same bits. Where a target expands the
// values of pages that many rows share, which rounds elsewhere, the results are as near the reference as
// alone.
TEST_P(AttentionOnEveryPageType, NeitherThreadsNorTheBatchNorSharingChangeABit) {
  const AttentionTarget& target = GetParam();
  AttentionWorld world(MakeSpec(13, 64, 6, 2, 2), target.page, 128, 1536, 3);
  const auto alone = MakeEngine(target, world, 512, 1, true);
  const int first = world.AddSequence(700);
  world.Prefill(*alone, first, 650);
  std::vector<Rows> rows = {{first, 1}};
  for (int i = 0; i < 20; ++i) {  // 9 shared pages end within a split
    world.AddSequence(640 + 13 * i, first, 9 * kPageTokens);
    world.Prefill(*alone, world.sequences.size() - 1, 600 + 13 * i);
    rows.push_back({static_cast<int>(world.sequences.size()) - 1, i == 7 ? 40 : i % 5 + 1});
  }
  const std::vector<int> stored = [&] {
    std::vector<int> s;
    for (const auto& sequence : world.sequences) s.push_back(sequence.stored);
    return s;
  }();
  const auto restart = [&] {
    for (size_t i = 0; i < stored.size(); ++i) world.sequences[i].stored = stored[i];
  };
  const auto same = [](const std::vector<float>& a, const float* b) {
    return std::memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
  };

  StepPlan plan = world.MakePlan(rows);
  const std::vector<float> expected = world.Run(*alone, plan);
  Check(world, rows, plan, expected, target.tolerance(), 17);
  const size_t width = expected.size() / plan.n_rows();
  for (size_t s = 0; s < rows.size(); ++s) {
    restart();
    const StepPlan one = world.MakePlan({rows[s]});
    EXPECT_TRUE(same(world.Run(*alone, one), expected.data() + plan.row_begin[s] * width))
        << "sequence " << s;
  }
  for (const int n_threads : target.threads) {
    const auto attention = MakeEngine(target, world, 512, n_threads, true);
    for (int shared_pages : {0, 9, 8, 3, 1000}) {  // more than is whole for all: what is not is not shared
      restart();
      plan = world.MakePlan(rows);
      if (shared_pages > 0) {
        plan.shared_prefixes = {{0, static_cast<int32_t>(rows.size()), std::min(shared_pages, 9)}};
      }
      const std::vector<float> out = world.Run(*attention, plan);
      if (shared_pages > 0 && !target.sharing_keeps_bits) {
        Check(world, rows, plan, out, target.tolerance(), 17);
        continue;
      }
      EXPECT_TRUE(same(expected, out.data())) << n_threads << " threads, " << shared_pages << " shared pages";
    }
  }
}

TEST_P(AttentionOnEveryPageType, ManyRowsAtLongContextsFitInFewSlots) {
  const AttentionTarget& target = GetParam();
  // 128 heads of 128: a slot is 66 kB, so that 16 MiB hold the partials of a few rows only.
  AttentionWorld world(MakeSpec(128, 128, 2, 1, 1), target.page, 40, 16384, 4);
  const auto attention = MakeEngine(target, world, 512, 2);
  std::vector<Rows> rows;
  for (int i = 0; i < 3; ++i) {
    world.AddSequence(500);
    world.Prefill(*attention, i, 486);
    rows.push_back({i, 14});
  }
  const StepPlan plan = world.MakePlan(rows);
  Check(world, rows, plan, world.Run(*attention, plan), target.tolerance(), 5);
}

TEST_P(AttentionOnEveryPageType, DecodeAndPrefillStoreTheSameBytes) {
  const AttentionSpec spec = MakeSpec(13, 64, 6, 2, 2, 40);
  const AttentionTarget& target = GetParam();
  std::vector<std::vector<uint8_t>> bytes;
  for (int chunk : {1, 7, 256}) {
    AttentionWorld world(spec, target.page, 5, 320, 5);
    const auto attention = MakeEngine(target, world, 256, 2);
    world.AddSequence(300);
    while (world.sequences[0].stored < 300) {
      world.Prefill(*attention, 0, std::min(300, world.sequences[0].stored + chunk));
    }
    bytes.push_back(world.bytes());
  }
  EXPECT_EQ(bytes[0], bytes[1]);
  EXPECT_EQ(bytes[0], bytes[2]);
}

// Where the kernels that attend also store, they are others than the one that only stores: one for rows alone
// in their sequence, one for whatever else. The last page is whole, begun or has a row or two left.
TEST_P(AttentionOnEveryPageType, WhatRunStoresIsWhatStoreStores) {
  const AttentionTarget& target = GetParam();
  const SpecCase specs[] = {
      {"Shipped", MakeSpec(13, 64, 6, 2, 2)},     {"RankOne", MakeSpec(5, 32, 16, 1, 1)},
      {"FullQuery", MakeSpec(11, 64, 0, 2, 2)},   {"LargeHeads", MakeSpec(7, 128, 6, 2, 2)},
      {"Partial", MakeSpec(4, 64, 17, 3, 3, 20)}, {"Rank4", MakeSpec(47, 64, 8, 4, 4)}};
  const std::vector<int> steps[] = {{1}, {1, 1, 1, 1, 1}, {16}, {50}, {64, 70}, {300}, {1, 3, 40, 1, 100}};
  const int contexts[] = {130, 63, 64, 190, 0};
  for (const SpecCase& c : specs) {
    for (const std::vector<int>& step : steps) {
      std::vector<uint8_t> bytes[2];
      for (const bool in_run : {false, true}) {
        AttentionWorld world(c.spec, target.page, 24, 512, 6);
        const auto attention = MakeEngine(target, world, 512, 2);
        std::vector<Rows> rows;
        for (const int n : step) {
          const int context = contexts[rows.size()], sequence = world.AddSequence(context + n);
          world.Prefill(*attention, sequence, context);
          rows.push_back({sequence, n});
        }
        const std::vector<uint8_t> before = world.bytes();
        const StepPlan plan = world.MakePlan(rows);
        if (in_run) {
          world.Run(*attention, plan);
        } else {
          world.Store(*attention, plan);
        }
        EXPECT_TRUE(before != world.bytes()) << "nothing was stored";
        bytes[in_run] = world.bytes();
      }
      const auto differs = std::mismatch(bytes[0].begin(), bytes[0].end(), bytes[1].begin()).first;
      EXPECT_EQ(differs - bytes[0].begin(), static_cast<ptrdiff_t>(bytes[0].size()))
          << c.name << ", " << step.size() << " sequences, the first of " << step[0] << " rows: byte "
          << (differs - bytes[0].begin()) % PageLayout(c.spec, target.page).page_bytes() << " of a page";
    }
  }
}

TEST_P(AttentionOnEveryPageType, StoreRoundsToNearestEvenAndRotatesKeysOnly) {
  const AttentionTarget& target = GetParam();
  if (target.page == DType::kFp8) GTEST_SKIP() << "rounds otherwise: the next test";
  const bool rounds = target.page == DType::kBF16;
  const AttentionSpec spec = MakeSpec(1, 32, 1, 1, 1, 4);
  const PageLayout layout(spec, target.page);
  std::vector<uint8_t> page(layout.page_bytes(), 0);
  std::vector<float> qkv(spec.qkv_elements(), 0.0f);
  float* key = qkv.data() + spec.q_elements();
  key[0] = std::ldexp(257.0f, -8);                     // A_K: half way between 1 and 1.0078125; 1 is even
  for (int i = 0; i < 32; ++i) key[1 + i] = i + 1.0f;  // B_K
  float* value = key + spec.k_elements();
  value[0] = std::ldexp(259.0f, -8);  // A_V: half way; 1.015625 is even
  for (int i = 0; i < 32; ++i) value[1 + i] = i + 1.0f;
  const float cos[] = {0.0f, 0.5f}, sin[] = {1.0f, 0.25f};
  StepPlan plan;
  plan.Clear();
  plan.token_ids = {0}, plan.positions = {0}, plan.slots = {5};
  plan.row_begin = {0, 1}, plan.context_len = {1}, plan.page_begin = {0, 1}, plan.page_ids = {0};
  const auto attention = target.make(1, false);
  ASSERT_TRUE(
      attention->Reserve({.max_rows = 1, .max_sequences = 1, .max_outputs = 1, .max_context = 64}, spec)
          .ok());
  ASSERT_TRUE(attention->Plan(plan, spec).ok());
  ASSERT_TRUE(attention->Store({&spec, qkv.data(), cos, sin, {page.data(), &layout, 1}}).ok());
  const auto at = [&](PartName name, int i) {
    const uint8_t* part = page.data() + layout.part(name).offset;
    return rounds ? ToFloat(reinterpret_cast<const bf16*>(part)[i]) : reinterpret_cast<const float*>(part)[i];
  };
  EXPECT_EQ(at(PartName::kAK, 5), rounds ? 1.0f : key[0]);
  EXPECT_EQ(at(PartName::kAV, 5), rounds ? 1.015625f : value[0]);
  // y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos: x = 1 2 | 3 4.
  EXPECT_EQ(at(PartName::kBK, 5 * 32 + 0), 3.0f);
  EXPECT_EQ(at(PartName::kBK, 5 * 32 + 1), 2.0f);
  EXPECT_EQ(at(PartName::kBK, 5 * 32 + 2), -1.0f);
  EXPECT_EQ(at(PartName::kBK, 5 * 32 + 3), 1.5f);
  EXPECT_EQ(at(PartName::kBK, 5 * 32 + 4), 5.0f);
  EXPECT_EQ(at(PartName::kBV, 5 * 32 + 0), 1.0f);
  EXPECT_EQ(at(PartName::kBV, 5 * 32 + 31), 32.0f);
  EXPECT_EQ(at(PartName::kBK, 4 * 32 + 31), 0.0f);  // no other token's
  EXPECT_EQ(at(PartName::kAK, 6), 0.0f);
}

// Every byte of an fp8 page that a token has, against the search in reference_fp8.h: ordinary terms, some
// with numbers far apart, too large and too small for any exponent, all zero, and not finite.
TEST_P(AttentionOnEveryPageType, Fp8StoreKeepsTermsAsTwoVectorsAndOneScale) {
  const AttentionTarget& target = GetParam();
  if (target.page != DType::kFp8) GTEST_SKIP() << "not fp8";
  const int h = 5, d = 48, ranks = 3, n = 40;
  AttentionWorld world(MakeSpec(h, d, 2, ranks, ranks, 20), target.page, 2, 64, 6);
  const auto attention = MakeEngine(target, world, 64);
  world.AddSequence(n);
  const AttentionSpec& spec = world.spec();
  for (int t = 0; t < n; ++t) {
    float* qkv = world.sequences[0].qkv[t].data();
    for (int i = 0; i < spec.qkv_elements(); ++i) qkv[i] *= std::ldexp(1.0f, i * 7 % 11 - t);
    float* values = qkv + spec.q_elements() + spec.k_elements();
    if (t == 3) std::fill_n(values, h * ranks, 0.0f);
    if (t == 4) values[0] = NAN, values[h * ranks + d] = INFINITY;
  }
  const StepPlan plan = world.MakePlan({{0, n}});
  world.Store(*attention, plan);
  const PageLayout layout(spec, target.page);
  const uint8_t* page = world.bytes().data() + layout.page_bytes() * world.sequences[0].pages[0];
  const auto check = [&](const float* a, const float* b, int t, bool rotates, PartName bs, PartName as,
                         PartName scales) {
    for (int r = 0; r < ranks; ++r) {
      float scale;
      std::memcpy(&scale, page + layout.part(scales).offset + (r * 64 + t) * 4, 4);
      std::vector<double> column(h), row(b + r * d, b + (r + 1) * d);
      if (rotates) row = world.reference().RotatedInF32(b + r * d, t);
      for (int j = 0; j < h; ++j) column[j] = a[j * ranks + r];
      if (!rotates && t == 4 && r < 2) {
        EXPECT_TRUE(std::isnan(scale)) << r;
        continue;
      }
      const double a_factor = Fp8Factor(column), b_factor = Fp8Factor(row);
      EXPECT_EQ(scale, 1.0 / (a_factor * b_factor)) << "token " << t << " rank " << r;
      const auto same = [](uint8_t byte, double x) {
        return byte == (NearestFp8(x) | (std::signbit(x) ? 0x80 : 0));
      };
      for (int j = 0; j < h; ++j)
        ASSERT_TRUE(same(page[layout.part(as).offset + (r * h + j) * 64 + t], column[j] * a_factor));
      for (int i = 0; i < d; ++i)
        ASSERT_TRUE(same(page[layout.part(bs).offset + (r * 64 + t) * d + i], row[i] * b_factor));
    }
  };
  for (int t = 0; t < n; ++t) {
    const float* keys = world.sequences[0].qkv[t].data() + spec.q_elements();
    const float* values = keys + spec.k_elements();
    check(keys, keys + h * ranks, t, true, PartName::kBK, PartName::kAK, PartName::kSK);
    check(values, values + h * ranks, t, false, PartName::kBV, PartName::kAV, PartName::kSV);
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionOnEveryPageType, ::testing::ValuesIn(BestTargets()),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace t6::testing
