// The real model on every backend against the scalar float64 one: whole prompts, chunks, and batches over
// pages in random order. What does not belong to a sequence is NaN, so that a wrong read shows.
#include "engine/model/t6_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "engine/backend/factory.h"
#include "engine/model_runner.h"
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
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

struct Errors {
  double worst = 0;
  double sum = 0;
  int count = 0;
  double mean() const { return sum / count; }
};

class T6ModelTest : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr int kPages = 24;

  void Load(DType dtype) {
    const ModelSpec& spec = GetParam().spec;
    tensors_ = RandomTensors(spec, 7);
    auto backend = MakeBackend({.device = "cpu", .threads = 2});
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = std::move(*backend);
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
    for (int i = 0; i < n; ++i)
      s.tokens.push_back(static_cast<int32_t>(random_() % GetParam().spec.vocab_size));
    const ReferenceModel reference(GetParam().spec, tensors_);
    for (const auto& logits : reference.Logits(s.tokens)) s.reference.push_back(LogSoftmax(logits));
    return s;
  }

  // Appends the next `n` tokens of `s` to the plan; every row is an output that scores the token after it.
  void AddRows(Sequence& s, int n, StepPlan* plan) {
    for (int i = 0; i < n; ++i) {
      const int t = s.written++;
      if (t % kPageTokens == 0) {
        s.pages.push_back(free_.back());
        free_.pop_back();
        plan->clear_pages.push_back(s.pages.back());
      }
      plan->output_rows.push_back(plan->n_rows());
      SamplingRow row;
      row.n_top = 0;
      row.score_token = t + 1 < static_cast<int>(s.tokens.size()) ? s.tokens[t + 1] : s.tokens[0];
      plan->sampling.push_back(row);
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
    for (int q = 0; q < plan.n_sequences(); ++q) {
      for (int row = plan.row_begin[q]; row < plan.row_begin[q + 1]; ++row) {
        const TokenOutput& got = result->outputs[row];
        const double want = sequences[q]->reference[plan.positions[row]][plan.sampling[row].score_token];
        const double error = std::abs(got.logprob - want);
        errors->worst = std::isnan(error) ? 1e9 : std::max(errors->worst, error);
        errors->sum += error;
        ++errors->count;
      }
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
  // Random weights without training: logits of deviation sqrt(40), and about twenty products rounded to 8
  // bits.
  EXPECT_LT(errors.mean(), 0.15);
  EXPECT_LT(errors.worst, 1.5);
  EXPECT_GT(errors.worst, 1e-3) << "bfloat16 was asked for";
}

INSTANTIATE_TEST_SUITE_P(Shapes, T6ModelTest,
                         ::testing::Values(Case{"h5_d16_r322", TinySpec(5, 16, 3, 2, 2)},
                                           Case{"h13_d64_r622", TinySpec(13, 64, 6, 2, 2)},
                                           Case{"h3_d32_r1611", TinySpec(3, 32, 16, 1, 1)},
                                           Case{"h4_d32_r434_norm", TinySpec(4, 32, 4, 3, 4, true)}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace t6
