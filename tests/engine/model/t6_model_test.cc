// The real model on every backend against the scalar float64 one: whole prompts, chunks, and batches over
// pages in random order. What does not belong to a sequence is NaN, so that a wrong read shows.
#include "engine/model/t6_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <tuple>

#include "engine/backend/factory.h"
#include "engine/model_runner.h"
#include "tests/support/has_gpu.h"
#include "tests/support/reference_model.h"

namespace t6 {
namespace {

using testing::LogSoftmax;
using testing::MemoryTensors;
using testing::RandomTensors;
using testing::ReferenceModel;

ModelSpec TinySpec(int h, int d, int rq, int rk, int rv, bool head_norm = false) {
  ModelSpec spec;
  spec.variant = "T6";
  spec.vocab_size = 131;
  spec.n_layers = 2;
  spec.width = 40;
  spec.mlp_width = 106;
  spec.block_size = 512;
  spec.attention.n_heads = h;
  spec.attention.head_dim = d;
  spec.attention.q.rank = rq;
  spec.attention.k.rank = rk;
  spec.attention.v.rank = rv;
  spec.attention.rotary_dim = d;
  spec.attention.head_norm = head_norm;
  return spec;
}

struct Case {
  const char* name;
  ModelSpec spec;
  // Of a score's error in bfloat16: random weights without training give logits of deviation sqrt(40), and
  // about twenty products are rounded to 8 bits. Means on the CPU, the two tests: 0.049 and 0.071, 0.147 and
  // 0.150, 0.074 and 0.074, 0.114 and 0.108. For the second shape an H200 gives 0.154 and 0.153, or 0.174:
  // the algorithms that a load's timing chooses add in orders of their own.
  double rounding_mean;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

struct Errors {
  double worst = 0;
  double sum = 0;
  int count = 0;
  double mean() const { return sum / count; }
};

// Device and shape.
class T6ModelTest : public ::testing::TestWithParam<std::tuple<std::string, Case>> {
 protected:
  static constexpr int kPages = 24;
  static const ModelSpec& spec() { return std::get<1>(GetParam()).spec; }

  void SetUp() override {
    const std::string& device = std::get<0>(GetParam());
    auto made = MakeBackend({.device = device == "cpu" ? "cpu" : "cuda",
                             .portable_kernels = device == "cuda_portable",
                             .threads = 2});
    if (!made.ok()) {
      ASSERT_TRUE(device != "cpu" && testing::MayPassOverGpu(made.status())) << made.status();
      GTEST_SKIP() << made.status();
    }
    backend_ = std::move(made->backend);
  }

  void Load(DType dtype) {
    const ModelSpec& spec = this->spec();
    random_.seed(3);
    tensors_ = RandomTensors(spec, 7);
    const StepLimits limits{.max_rows = 300, .max_sequences = 8, .max_outputs = 300, .max_context = 512};
    auto model = T6Model::Load(backend_.get(), spec, tensors_, dtype, limits, nullptr);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = std::move(*model);
    auto cache =
        FactorCache::Create(backend_.get(), PageLayout(spec.attention, dtype), spec.n_layers, kPages);
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = std::move(*cache);
    ASSERT_TRUE(cache_->Poison().ok());
    runner_ = std::make_unique<ModelRunner>(backend_.get(), model_.get(), cache_.get(), spec.vocab_size);
    free_.resize(kPages);
    std::iota(free_.begin(), free_.end(), 0);
    std::shuffle(free_.begin(), free_.end(), random_);
  }

  struct Sequence {
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
    int written = 0;
    std::vector<std::vector<double>> reference;  // log-softmax after every token
  };

  Sequence MakeSequence(int n) {
    Sequence s;
    for (int i = 0; i < n; ++i) s.tokens.push_back(static_cast<int32_t>(random_() % spec().vocab_size));
    const ReferenceModel reference(spec(), tensors_);
    for (const auto& logits : reference.Logits(s.tokens)) s.reference.push_back(LogSoftmax(logits));
    return s;
  }

  // Appends the next `n` tokens of `s` to the plan; the last `n_outputs` (-1: all) are outputs that score the
  // token after them.
  void AddRows(Sequence& s, int n, StepPlan* plan, int n_outputs = -1) {
    for (int i = 0; i < n; ++i) {
      const int t = s.written++;
      if (t % kPageTokens == 0) {
        s.pages.push_back(free_.back());
        free_.pop_back();
        plan->clear_pages.push_back(s.pages.back());
      }
      if (n_outputs < 0 || i >= n - n_outputs) {
        plan->output_rows.push_back(plan->n_rows());
        SamplingRow row;
        row.n_top = 0;
        row.score_token = t + 1 < static_cast<int>(s.tokens.size()) ? s.tokens[t + 1] : s.tokens[0];
        plan->sampling.push_back(row);
      }
      plan->token_ids.push_back(s.tokens[t]);
      plan->positions.push_back(t);
      plan->slots.push_back(s.pages.back() * kPageTokens + t % kPageTokens);
    }
    plan->row_begin.push_back(plan->n_rows());
    plan->context_len.push_back(s.written);
    plan->page_ids.insert(plan->page_ids.end(), s.pages.begin(), s.pages.end());
    plan->page_begin.push_back(static_cast<int32_t>(plan->page_ids.size()));
  }

  // Runs the plan; errors of its scores against the references of the sequences, in plan order, go into
  // `errors`.
  void Run(const StepPlan& plan, const std::vector<const Sequence*>& sequences, Errors* errors) {
    EXPECT_TRUE(runner_->Launch(plan).ok());
    const StatusOr<StepResult> result = runner_->Wait();
    EXPECT_TRUE(result.ok()) << result.status();
    int q = 0;
    for (int i = 0; i < plan.n_outputs(); ++i) {
      const int row = plan.output_rows[i];
      while (row >= plan.row_begin[q + 1]) ++q;
      const double want = sequences[q]->reference[plan.positions[row]][plan.sampling[i].score_token];
      const double error = std::abs(result->outputs[i].logprob - want);
      errors->worst = std::isnan(error) ? 1e9 : std::max(errors->worst, error);
      errors->sum += error;
      ++errors->count;
    }
  }

  std::mt19937 random_{3};
  MemoryTensors tensors_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<T6Model> model_;
  std::unique_ptr<FactorCache> cache_;
  std::unique_ptr<ModelRunner> runner_;
  std::vector<int32_t> free_;
};

TEST_P(T6ModelTest, ChunksAndDecodeStepsAgreeWithTheReference) {
  Load(DType::kF32);
  Sequence s = MakeSequence(150);
  Errors errors;
  for (int n : {70, 57, 1, 1, 20, 1}) {
    StepPlan plan;
    plan.Clear();
    AddRows(s, n, &plan);
    Run(plan, {&s}, &errors);
  }
  EXPECT_LT(errors.worst, 2e-4);
}

TEST_P(T6ModelTest, ABatchOfUnequalSequencesAgreesWithTheReference) {
  Load(DType::kF32);
  std::vector<Sequence> all;
  for (int n : {3, 90, 64, 65}) all.push_back(MakeSequence(n));
  Errors errors;
  // Each sequence goes on at its own pace: decode rows beside chunks.
  while (true) {
    StepPlan plan;
    plan.Clear();
    std::vector<const Sequence*> planned;
    for (Sequence& s : all) {
      const int left = static_cast<int>(s.tokens.size()) - s.written;
      if (left == 0) continue;
      AddRows(s, std::min<int>(left, 1 + random_() % 30), &plan);
      planned.push_back(&s);
    }
    if (planned.empty()) break;
    Run(plan, planned, &errors);
  }
  EXPECT_LT(errors.worst, 2e-4);
}

TEST_P(T6ModelTest, Bfloat16StaysWithinItsRounding) {
  Load(DType::kBF16);
  Sequence s = MakeSequence(100);
  StepPlan plan;
  plan.Clear();
  AddRows(s, 99, &plan);
  Errors errors;
  Run(plan, {&s}, &errors);
  plan.Clear();
  AddRows(s, 1, &plan);
  Run(plan, {&s}, &errors);
  EXPECT_LT(errors.mean(), std::get<1>(GetParam()).rounding_mean);
  EXPECT_LT(errors.worst, 1.5);
  EXPECT_GT(errors.worst, 1e-3) << "bfloat16 was asked for";
}

// Steps of one kind again and again (a device may replay what it recorded), while the batch shrinks and the
// contexts cross a page.
TEST_P(T6ModelTest, ManyDecodeStepsAgreeWithTheReference) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Load(dtype);
    std::vector<Sequence> all;
    for (int n : {75, 70, 20}) all.push_back(MakeSequence(n));
    Errors prefill, decode;
    for (Sequence& s : all) {
      StepPlan plan;
      plan.Clear();
      AddRows(s, static_cast<int>(s.tokens.size()) - 14, &plan);
      Run(plan, {&s}, &prefill);
    }
    for (int step = 0; step < 14; ++step) {
      StepPlan plan;
      plan.Clear();
      std::vector<const Sequence*> planned;
      for (int i = 0; i < (step < 6 ? 3 : step < 10 ? 2 : 1); ++i) {
        AddRows(all[i], 1, &plan);
        planned.push_back(&all[i]);
      }
      Run(plan, planned, &decode);
    }
    EXPECT_EQ(decode.count, 6 * 3 + 4 * 2 + 4);
    EXPECT_LT(decode.worst, dtype == DType::kF32 ? 2e-4 : 1.5);
    EXPECT_LT(decode.mean(), dtype == DType::kF32 ? 5e-5 : std::get<1>(GetParam()).rounding_mean);
  }
}

// Chunks as a server plans them, whose last layer is computed for output rows alone: of a chunk none or the
// last, beside rows of decode and a sequence that wants no logits yet. Every row's factors have to be there
// afterwards.
TEST_P(T6ModelTest, ChunksWithFewOutputsAgreeWithTheReference) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Load(dtype);
    Sequence longest = MakeSequence(190), other = MakeSequence(60), decoded = MakeSequence(40);
    Errors errors;
    StepPlan plan;
    const auto run = [&](std::vector<const Sequence*> sequences) {
      const int begun = errors.count;
      Run(plan, sequences, &errors);
      EXPECT_EQ(errors.count - begun, plan.n_outputs());
      plan.Clear();
    };
    plan.Clear();
    AddRows(longest, 70, &plan, 0), run({&longest});
    AddRows(decoded, 33, &plan, 1), AddRows(longest, 20, &plan, 0), run({&decoded, &longest});
    AddRows(decoded, 1, &plan), AddRows(longest, 17, &plan, 1), AddRows(other, 40, &plan, 0);
    run({&decoded, &longest, &other});
    AddRows(longest, 1, &plan), AddRows(other, 19, &plan, 1), AddRows(decoded, 2, &plan, 1);
    run({&longest, &other, &decoded});
    AddRows(longest, 60, &plan, 3), AddRows(other, 1, &plan), run({&longest, &other});
    AddRows(longest, 20, &plan, 1), run({&longest});
    AddRows(longest, 1, &plan), AddRows(decoded, 1, &plan), run({&longest, &decoded});
    // Beside a chunk: two rows that share a page, one of which was another's.
    Sequence sharer = MakeSequence(70);
    std::copy_n(longest.tokens.begin(), 64, sharer.tokens.begin());
    sharer.reference.clear();
    for (const auto& logits : ReferenceModel(spec(), tensors_).Logits(sharer.tokens)) {
      sharer.reference.push_back(LogSoftmax(logits));
    }
    sharer.pages = {longest.pages[0]}, sharer.written = 64;
    Sequence fresh = MakeSequence(40);
    AddRows(sharer, 1, &plan), AddRows(longest, 1, &plan), AddRows(fresh, 30, &plan, 1);
    plan.shared_prefixes.push_back({0, 2, 1});
    run({&sharer, &longest, &fresh});
    AddRows(sharer, 1, &plan), AddRows(fresh, 1, &plan), run({&sharer, &fresh});
    EXPECT_EQ(errors.count, 0 + 1 + 2 + 3 + 4 + 1 + 2 + 3 + 2);
    EXPECT_LT(errors.worst, dtype == DType::kF32 ? 2e-4 : 1.5);
    EXPECT_LT(errors.mean(), dtype == DType::kF32 ? 5e-5 : 2 * std::get<1>(GetParam()).rounding_mean);
  }
}

// A step that is launched before the tokens of the step before are known gives what it gives afterwards.
TEST_P(T6ModelTest, AStepInFlightFeedsTheNext) {
  const int depth = backend_->info().pipeline_depth;
  std::vector<int32_t> tokens[2];
  for (const bool ahead : {false, true}) {
    Load(DType::kF32);
    Sequence s = MakeSequence(40);
    std::vector<StepPlan> plans(8);
    const auto plan_step = [&](int step, int32_t token) {
      StepPlan& plan = plans[step];
      plan.Clear();
      if (step > 0) s.tokens.resize(40 + step, 0);
      AddRows(s, step == 0 ? 40 : 1, &plan);
      if (step > 0) plan.token_ids.back() = token;
      plan.output_rows = {plan.n_rows() - 1};
      plan.sampling = {SamplingRow{.temperature = 0}};
    };
    const auto wait = [&] {
      const auto result = runner_->Wait();
      ASSERT_TRUE(result.ok()) << result.status();
      tokens[ahead].push_back(result->outputs[0].token);
    };
    for (int step = 0; step < 8; ++step) {
      const bool known = !ahead || depth == 1;
      plan_step(step, step == 0 ? 0 : known ? tokens[ahead].back() : -1);
      ASSERT_TRUE(runner_->Launch(plans[step]).ok());
      if (known || step > 0) wait();
    }
    if (ahead && depth > 1) wait();
  }
  EXPECT_EQ(tokens[0].size(), 8u);
  EXPECT_EQ(tokens[0], tokens[1]);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, T6ModelTest,
    ::testing::Combine(::testing::Values("cpu", "cuda", "cuda_portable"),
                       ::testing::Values(Case{"h5_d16_r322", TinySpec(5, 16, 3, 2, 2), 0.1},
                                         Case{"h13_d64_r622", TinySpec(13, 64, 6, 2, 2), 0.2},
                                         Case{"h3_d32_r1611", TinySpec(3, 32, 16, 1, 1), 0.1},
                                         Case{"h4_d32_r434_norm", TinySpec(4, 32, 4, 3, 4, true), 0.15})),
    [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param).name; });

}  // namespace
}  // namespace t6
