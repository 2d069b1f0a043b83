// Attention of several rows on a Hopper GPU against float64, through cuda::TpaAttention, beside decode rows.
// Without a GPU, every test here is skipped.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/backend/cuda/multi_row_attention.h"
#include "engine/backend/cuda/simple_attention.h"
#include "engine/backend/cuda/tpa_attention.h"
#include "engine/base/page_tokens.h"
#include "tests/support/attention_world.h"
#include "tests/support/cuda_on_device.h"
#include "tests/support/has_gpu.h"

namespace t6::testing {
namespace {

double Bf16(double x) { return RoundToBf16(static_cast<float>(x)); }

// Attention as a bfloat16 kernel must round it, and no more: Q, K, V and the weights once each, everything
// else exact. What a kernel's error is measured in.
std::vector<double> RoundedOutput(const AttentionSpec& spec,
                                  const std::vector<ReferenceAttention::Token>& tokens, int position) {
  const int h = spec.n_heads, d = spec.head_dim;
  std::vector<double> out(static_cast<size_t>(h) * d);
  for (int j = 0; j < h; ++j) {
    std::vector<double> logits;
    for (int t = 0; t <= position; ++t) {
      double logit = 0.0;
      for (int i = 0; i < d; ++i) logit += Bf16(tokens[position].q[j * d + i]) * Bf16(tokens[t].k[j * d + i]);
      logits.push_back(logit / std::sqrt(static_cast<double>(d)));
    }
    const double most = *std::max_element(logits.begin(), logits.end());
    double total = 0.0;
    for (double& x : logits) x = std::exp(x - most), total += x;
    for (int t = 0; t <= position; ++t) {
      for (int i = 0; i < d; ++i) out[j * d + i] += Bf16(logits[t]) * Bf16(tokens[t].v[j * d + i]) / total;
    }
  }
  return out;
}

struct Case {
  const char* name;
  int h, d, rank, rank_q;
  bool head_norm = false;
  bool bf16_out = false;
  int rotary_dim = -1;
  int min_prefill_rows = 0;
  size_t scratch_bytes = size_t{160} << 20;
  int fixed_split_pages = 0;
  bool stores = true;
  bool pads_rows = false;  // of projections, to 64 numbers
  int max_context = 2048;
};

// Runs a step on the device and holds sampled rows against the reference.
class Harness {
 public:
  Harness(const Case& c, uint32_t seed) : case_(c), world_(Spec(c), DType::kBF16, 256, c.max_context, seed) {}

  static AttentionSpec Spec(const Case& c) {
    AttentionSpec spec = MakeSpec(c.h, c.d, c.rank_q, c.rank, c.rank, c.rotary_dim);
    spec.head_norm = c.head_norm;
    return spec;
  }

  AttentionWorld& world() { return world_; }

  // The first n tokens of a sequence, stored by the device itself in chunks.
  void Prefill(int sequence, int n) {
    while (world_.sequences[sequence].stored < n) {
      Run(world_.MakePlan({{sequence, std::min(300, n - world_.sequences[sequence].stored)}}), false);
    }
  }

  // Fills whatever the steps before the next one have written besides their results (queries, expanded keys
  // and values, partial results) with NaN: as the steps of another sequence do whose numbers are NaN.
  void Poison() {
    const int sequence = world_.AddSequence(2000);
    for (std::vector<float>& row : world_.sequences[sequence].qkv) std::fill(row.begin(), row.end(), NAN);
    for (const int n : {1600, 300, 64, 20, 16}) Run(world_.MakePlan({{sequence, n}}), false);
  }

  // The output's bytes, where nothing fails before.
  std::vector<uint8_t> Run(const StepPlan& plan, bool checks = true) {
    std::vector<uint8_t> bytes;
    RunInto(plan, checks, &bytes);
    return bytes;
  }

 private:
  void RunInto(const StepPlan& plan, bool checks, std::vector<uint8_t>* bytes) {
    const AttentionSpec& spec = world_.spec();
    if (attention_ == nullptr) Make();
    const OnDevice<float> qkv(PaddedQkv(plan.n_rows()));
    const int stride = case_.pads_rows ? QkvStride() : 0;
    const size_t width = static_cast<size_t>(spec.n_heads) * spec.head_dim;
    const OnDevice<uint8_t> out(std::vector<uint8_t>(plan.n_rows() * width * (case_.bf16_out ? 2 : 4), 0xff));
    const LayerPages pages{pages_->get(), world_.pages().layout, world_.pages().n_pages};
    ASSERT_TRUE(attention_->Plan(plan, spec).ok());
    ASSERT_TRUE(attention_->Store({&spec, qkv.get(), cos_->get(), sin_->get(), pages, stride}).ok());
    TpaAttentionParams params;
    params.qkv_stride = stride;
    params.spec = &spec, params.qkv = qkv.get(), params.cos = cos_->get(), params.sin = sin_->get();
    params.pages = pages, params.head_norm_weight = weight_->get(), params.out = out.get();
    params.out_dtype = case_.bf16_out ? DType::kBF16 : DType::kF32;
    const Status status = attention_->Run(params);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(cudaSuccess, cudaDeviceSynchronize());
    *bytes = out.Read();
    if (checks) Check(plan, *bytes);
  }

  // The plan's projections, with NaN where nothing may be read.
  std::vector<float> PaddedQkv(int n_rows) const {
    const ptrdiff_t n = world_.spec().qkv_elements(), stride = QkvStride();
    std::vector<float> padded(n_rows * stride, NAN);
    for (int row = 0; row < n_rows; ++row) {
      std::copy_n(world_.qkv().begin() + row * n, n, padded.begin() + row * stride);
    }
    return padded;
  }
  int QkvStride() const {
    const int n = world_.spec().qkv_elements();
    return case_.pads_rows ? (n + 63) / 64 * 64 : n;
  }

  void Make() {
    cuda::MultiRowOptions options;
    options.always_shares = true, options.stores = case_.stores;
    options.min_prefill_rows = case_.min_prefill_rows, options.scratch_bytes = case_.scratch_bytes;
    auto path = cuda::MakeMultiRowAttention(options);
    ASSERT_TRUE(path.ok()) << path.status();
    cuda::TpaAttentionOptions attention;
    attention.multi_row = *std::move(path);
    attention.general = cuda::MakeSimpleAttention();
    attention.fixed_split_pages = case_.fixed_split_pages;
    auto made = cuda::TpaAttention::Make(std::move(attention));
    ASSERT_TRUE(made.ok()) << made.status();
    attention_ = *std::move(made);
    ASSERT_TRUE(attention_->Reserve(world_.limits(2048), world_.spec()).ok());
    pages_ = std::make_unique<OnDevice<uint8_t>>(world_.bytes());
    cos_ = std::make_unique<OnDevice<float>>(world_.reference().cos);
    sin_ = std::make_unique<OnDevice<float>>(world_.reference().sin);
    weight_ = std::make_unique<OnDevice<float>>(world_.reference().head_norm_weight);
  }

  // The first, the last and some rows of each sequence; the error of all of them together, against that of
  // attention which only rounds its operands.
  void Check(const StepPlan& plan, const std::vector<uint8_t>& bytes) {
    const AttentionSpec& spec = world_.spec();
    const size_t width = static_cast<size_t>(spec.n_heads) * spec.head_dim;
    const auto value = [&](size_t i) {
      uint32_t bits = 0;
      if (case_.bf16_out) {
        std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, &bytes[2 * i], 2);
      } else {
        std::memcpy(&bits, &bytes[4 * i], 4);
      }
      float x;
      std::memcpy(&x, &bits, 4);
      return x;
    };
    for (size_t i = 0; i < plan.n_rows() * width; ++i) {
      ASSERT_TRUE(std::isfinite(value(i))) << "row " << i / width << " column " << i % width;
    }
    double difference = 0.0, rounding = 0.0, size = 0.0;
    for (int s = 0; s < plan.n_sequences(); ++s) {
      const int sequence = order_.empty() ? s : order_[s];
      const int begin = plan.row_begin[s], end = plan.row_begin[s + 1], step = std::max(1, (end - begin) / 4);
      for (int row = begin; row < end; row = row + 1 == end ? end : std::min(row + step, end - 1)) {
        const int position = plan.positions[row];
        std::vector<double> norms;
        const std::vector<double> want = world_.Expected(sequence, position, &norms);
        const std::vector<double> rounded = RoundedOutput(spec, world_.sequences[sequence].formed, position);
        double own = 0.0, own_size = 0.0;
        for (size_t i = 0; i < width; ++i) {
          own += std::pow(value(row * width + i) - want[i], 2), own_size += want[i] * want[i];
          if (!spec.head_norm) rounding += std::pow(rounded[i] - want[i], 2);
        }
        EXPECT_LT(std::sqrt(own / own_size), 0.03) << "sequence " << sequence << " position " << position;
        difference += own, size += own_size;
      }
    }
    const double error = std::sqrt(difference / size), unit = std::sqrt(rounding / size);
    std::printf("  %s: error %.5f, rounding alone %.5f\n", case_.name, error, unit);
    EXPECT_LT(error, spec.head_norm ? 0.006 : 1.5 * unit);
  }

 public:
  std::vector<int> order_;  // the plan's sequences, where they are not the world's first ones

 private:
  Case case_;
  AttentionWorld world_;
  std::unique_ptr<cuda::TpaAttention> attention_;
  std::unique_ptr<OnDevice<uint8_t>> pages_;
  std::unique_ptr<OnDevice<float>> cos_, sin_, weight_;
};

// Chunks of many sizes against cached pages and themselves, beside decode rows.
void RunRagged(const Case& c, uint32_t seed) {
  Harness harness(c, seed);
  AttentionWorld& world = harness.world();
  const int lengths[] = {200, 129, 700, 64, 530, 65, 1, 460};
  const int cached[] = {0, 128, 637, 0, 529, 13, 0, 64};
  for (int i = 0; i < 8; ++i) world.AddSequence(lengths[i] + 16);
  for (int i = 0; i < 8; ++i) harness.Prefill(i, cached[i]);
  std::vector<AttentionWorld::Rows> rows;
  for (int i = 0; i < 8; ++i) rows.push_back({i, lengths[i] - cached[i]});
  harness.Poison();
  harness.Run(world.MakePlan(rows));
}

constexpr Case kCases[] = {
    {.name = "h78 r2", .h = 78, .d = 64, .rank = 2, .rank_q = 6},
    {.name = "h47 r2 bf16", .h = 47, .d = 64, .rank = 2, .rank_q = 6, .bf16_out = true},
    {.name = "h13 r2 norm", .h = 13, .d = 64, .rank = 2, .rank_q = 6, .head_norm = true},
    {.name = "h5 r1 full query", .h = 5, .d = 64, .rank = 1, .rank_q = 0},
    {.name = "h7 r3 partial rope", .h = 7, .d = 64, .rank = 3, .rank_q = 4, .rotary_dim = 20},
    {.name = "h9 r4", .h = 9, .d = 64, .rank = 4, .rank_q = 8},
    {.name = "h13 r2 prefill", .h = 13, .d = 64, .rank = 2, .rank_q = 6, .min_prefill_rows = 2},
    {.name = "h78 r2 prefill bf16",
     .h = 78,
     .d = 64,
     .rank = 2,
     .rank_q = 6,
     .bf16_out = true,
     .min_prefill_rows = 64},
    {.name = "h7 r3 prefill norm, few heads a pass",
     .h = 7,
     .d = 64,
     .rank = 3,
     .rank_q = 4,
     .head_norm = true,
     .min_prefill_rows = 2,
     .scratch_bytes = 2 << 20},
    {.name = "h78 r2 prefill, padded rows",
     .h = 78,
     .d = 64,
     .rank = 2,
     .rank_q = 6,
     .bf16_out = true,
     .min_prefill_rows = 64,
     .pads_rows = true},
    {.name = "h13 r2 padded rows", .h = 13, .d = 64, .rank = 2, .rank_q = 6, .pads_rows = true},
    {.name = "h5 r1 prefill, padded rows of a full query",
     .h = 5,
     .d = 64,
     .rank = 1,
     .rank_q = 0,
     .min_prefill_rows = 64,
     .pads_rows = true},
    {.name = "h13 r2 prefill, stored before",
     .h = 13,
     .d = 64,
     .rank = 2,
     .rank_q = 6,
     .min_prefill_rows = 2,
     .stores = false},
    {.name = "h5 r1 prefill", .h = 5, .d = 64, .rank = 1, .rank_q = 16, .min_prefill_rows = 2},
    {.name = "h6 r2 prefill, 17 terms", .h = 6, .d = 64, .rank = 2, .rank_q = 17, .min_prefill_rows = 2},
    {.name = "h5 r1 prefill full query", .h = 5, .d = 64, .rank = 1, .rank_q = 0, .min_prefill_rows = 2},
    {.name = "h9 r4 prefill", .h = 9, .d = 64, .rank = 4, .rank_q = 8, .min_prefill_rows = 2},
};

// Behind a step that leaves NaN wherever it writes.
TEST(CudaPrefill, RaggedStepsMatchTheReference) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    RunRagged(c, 11);
  }
}

TEST(CudaPrefill, LongContextIsSplitAndMerged) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  for (const int rows : {2, 16, 17, 40, 64, 100}) {
    Harness harness({.name = "split", .h = 6, .d = 64, .rank = 2, .rank_q = 6}, 5);
    harness.world().AddSequence(2000);
    harness.Prefill(0, 1900 - rows);
    harness.Run(harness.world().MakePlan({{0, rows}}));
  }
}

// A context whose heads are dealt to the multiprocessors in different numbers of pieces: where some have no
// partial result, the step before has left NaN.
TEST(CudaPrefill, HeadsInDifferentNumbersOfPiecesAreMerged) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  constexpr int kLength = 112 * kPageTokens, kRows = 40;
  Harness harness({.name = "pieces", .h = 90, .d = 64, .rank = 1, .rank_q = 2, .max_context = kLength}, 5);
  harness.world().AddSequence(kLength);
  harness.Prefill(0, kLength - kRows);
  harness.Poison();
  harness.Run(harness.world().MakePlan({{0, kRows}}));
}

// Adds `level` of a token's position, in powers of two and a little rounding alike for all rows, to every
// score of every `head_step`-th head, by number 40 of d, which is not rotated.
template <typename Level>
void AddLevels(const AttentionSpec& spec, AttentionWorld::Sequence& sequence, const Level& level,
               int head_step) {
  const int h = spec.n_heads, d = spec.head_dim, rank_q = spec.q.rank, rank = spec.k.rank;
  const auto add = [&](float* a, float* b, int r_end, float value) {
    for (int head = 0; head < h; ++head) {
      const float own = head % head_step == 0 ? 1.0f : 0.0f;
      for (int r = 0; r < r_end; ++r) a[head * r_end + r] = r == 0 ? own : 0.25f * a[head * r_end + r];
    }
    for (int r = 0; r < r_end; ++r) b[r * d + 40] = r == 0 ? value : 0.0f;
  };
  for (size_t position = 0; position < sequence.qkv.size(); ++position) {
    float* q = sequence.qkv[position].data();
    float* k = q + spec.q_elements();
    // Scores are Q K / sqrt(d), times log2(e); Q is a sum over R_Q, K over R_K.
    add(q, q + h * rank_q, rank_q, 8.0f / 1.4427f * static_cast<float>(rank_q));
    add(k, k + h * rank, rank, static_cast<float>(rank) * level(static_cast<int>(position)));
  }
}

// Of a sequence with these levels, the last `rows` in one step behind the others.
template <typename Level>
void RunLevels(int rank, int length, int rows, const Level& level, int head_step = 1) {
  Harness harness({.name = "levels",
                   .h = 6,
                   .d = 64,
                   .rank = rank,
                   .rank_q = 6,
                   .rotary_dim = 20,
                   .min_prefill_rows = 256},
                  5);
  AttentionWorld& world = harness.world();
  world.AddSequence(length);
  AddLevels(world.spec(), world.sequences[0], level, head_step);
  harness.Prefill(0, length - rows);
  harness.Run(world.MakePlan({{0, rows}}));
}

// Where scores are far from 0, or rise far above the first ones, weights need another base than 0.
TEST(CudaPrefill, LargeAndRisingScoresKeepTheirWeights) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  for (const int rank : {2, 3}) {
    for (const int rows : {9, 24, 50, 300}) {
      RunLevels(rank, 1000, rows, [](int position) {
        // Under the first rows' base, far above it, beyond what a float holds, and above that by little.
        return position < 200 ? -96.0f : position < 420 ? -8.0f : position < 800 ? 192.0f : 208.0f;
      });
    }
  }
}

// Heads that need another base than 0 beside heads that do not, in every warp's pair and every group of four.
TEST(CudaPrefill, HeadsOfFarScoresStandBesideHeadsOfModerateOnes) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  for (const int rank : {2, 3}) {
    for (const int rows : {9, 50}) {
      for (const int step : {2, 3}) {
        RunLevels(
            rank, 400, rows, [](int position) { return position < 200 ? -216.0f : 96.0f; }, step);
      }
    }
  }
}

// All scores so low that with the base 0 no weight is left, of rows of which some see nothing of the block
// or page that others begin with: 330 and 380 are no multiples of its tokens, and rows cross the next one.
TEST(CudaPrefill, LowScoresKeepTheirWeightsWhereTheFirstBlockShowsARowNothing) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  for (const int rank : {2, 3}) {
    for (const auto& [cached, rows] : {std::pair(380, 9), {380, 24}, {380, 50}, {330, 300}}) {
      RunLevels(rank, cached + rows, rows, [](int) { return -216.0f; });  // e^-150
    }
  }
}

// Bits may depend on nothing but a row's own tokens then.
TEST(CudaPrefill, WithFixedSplitsAChunkIsTheSameHoweverItIsCut) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  const Case c{.name = "fixed splits",
               .h = 6,
               .d = 64,
               .rank = 2,
               .rank_q = 6,
               .min_prefill_rows = 64,
               .fixed_split_pages = 4};
  std::vector<uint8_t> whole, cut;
  for (const bool cuts : {false, true}) {
    Harness harness(c, 5);
    AttentionWorld& world = harness.world();
    world.AddSequence(500);
    harness.Prefill(0, 300);
    for (const int rows : cuts ? std::vector<int>{100, 17, 66, 17} : std::vector<int>{200}) {
      const std::vector<uint8_t> out = harness.Run(world.MakePlan({{0, rows}}));
      (cuts ? cut : whole).insert((cuts ? cut : whole).end(), out.begin(), out.end());
    }
  }
  EXPECT_EQ(whole, cut);
}

TEST(CudaPrefill, RowsOnSharedPagesAttendTogether) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  for (const int n : {4, 16, 33, 70}) {
    for (const bool norm : {false, true}) {
      Harness harness({.name = "shared", .h = 13, .d = 64, .rank = 2, .rank_q = 6, .head_norm = norm}, 3);
      AttentionWorld& world = harness.world();
      world.AddSequence(20 * 64);
      harness.Prefill(0, 20 * 64);
      // A lone sequence in front and one behind: they decode on their own.
      std::vector<AttentionWorld::Rows> rows;
      world.AddSequence(90);
      harness.Prefill(1, 80);
      rows.push_back({1, 1}), harness.order_.push_back(1);
      for (int i = 0; i < std::min(n, 60); ++i) {
        const int s = world.AddSequence(20 * 64 + 70, 0, 20 * 64);
        if (i % 3 == 1) harness.Prefill(s, 20 * 64 + i);
        rows.push_back({s, i == 2 && n == 70 ? 9 : 1}), harness.order_.push_back(s);
      }
      StepPlan plan = world.MakePlan(rows);
      plan.shared_prefixes.push_back({1, std::min(n, 60), 20});
      harness.Run(plan);
    }
  }
}

}  // namespace
}  // namespace t6::testing
