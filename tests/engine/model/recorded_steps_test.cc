// Decode steps on a GPU, which launches the operations of a kind of step one by one the first time and
// records them for the next, up to few rows as one kernel: whatever the widths, with ties and masks, with a
// step in flight behind another, and with rows that are not finite.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/factory.h"
#include "engine/model_runner.h"
#include "tests/support/reference_model.h"

namespace t6 {
namespace {

using testing::MemoryTensors;
using testing::RandomTensors;

struct Shape {
  int h, rank_q, rank;
  bool head_norm = false;
  int width = 1600, mlp_width = 4266, n_layers = 2;
};

constexpr int kVocab = 5003, kPagesEach = 4;

ModelSpec SpecOf(const Shape& shape) {
  ModelSpec spec;
  spec.variant = "T6";
  spec.vocab_size = kVocab, spec.n_layers = shape.n_layers;
  spec.width = shape.width, spec.mlp_width = shape.mlp_width;
  spec.block_size = 512;
  spec.attention.n_heads = shape.h;
  spec.attention.head_dim = spec.attention.rotary_dim = 64;
  spec.attention.q.rank = shape.rank_q;
  spec.attention.k.rank = spec.attention.v.rank = shape.rank;
  spec.attention.head_norm = shape.head_norm;
  return spec;
}

// A model on one device, with kPagesEach pages for each of its sequences.
class LoadedModel {
 public:
  // False: the device is not there.
  bool Load(const std::string& device, const ModelSpec& spec, const MemoryTensors& tensors, DType dtype,
            int n_sequences, int n_text) {
    auto made = MakeBackend({.device = device, .threads = 2});
    if (!made.ok()) {
      reason_ = made.status().ToString();
      return false;
    }
    backend_ = std::move(made->backend);
    const StepLimits limits{.max_rows = 1024,
                            .max_sequences = n_sequences,
                            .max_outputs = n_sequences,
                            .max_context = 512,
                            .page_dtype = dtype};
    auto model = T6Model::Load(backend_.get(), spec, tensors, dtype, limits, nullptr);
    auto cache = FactorCache::Create(backend_.get(), PageLayout(spec.attention, dtype), spec.n_layers,
                                     n_sequences * kPagesEach);
    EXPECT_TRUE(model.ok()) << model.status();
    EXPECT_TRUE(cache.ok()) << cache.status();
    if (!model.ok() || !cache.ok()) return false;
    model_ = std::move(*model), cache_ = std::move(*cache);
    runner_ = std::make_unique<ModelRunner>(backend_.get(), model_.get(), cache_.get(), n_text);
    return true;
  }
  const std::string& reason() const { return reason_; }
  ModelRunner& runner() { return *runner_; }

  StatusOr<std::vector<TokenOutput>> TryRun(const StepPlan& plan) {
    T6_RETURN_IF_ERROR(runner_->Launch(plan));
    T6_ASSIGN_OR_RETURN(StepResult result, runner_->Wait());
    return std::move(result.outputs);
  }
  // No outputs where it fails, which fails the test.
  std::vector<TokenOutput> Run(const StepPlan& plan) {
    auto outputs = TryRun(plan);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    return outputs.ok() ? *std::move(outputs) : std::vector<TokenOutput>();
  }

 private:
  std::string reason_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<T6Model> model_;
  std::unique_ptr<FactorCache> cache_;
  std::unique_ptr<ModelRunner> runner_;
};

// Appends a sequence's tokens from position `begin` on, the last of which gives an output.
void AddTokens(int sequence, int begin, const std::vector<int32_t>& tokens, const SamplingRow& sampling,
               StepPlan* plan) {
  int position = begin;
  for (const int32_t token : tokens) {
    plan->token_ids.push_back(token);
    plan->positions.push_back(position);
    plan->slots.push_back((sequence * kPagesEach + position / kPageTokens) * kPageTokens +
                          position % kPageTokens);
    ++position;
  }
  plan->output_rows.push_back(plan->n_rows() - 1);
  plan->sampling.push_back(sampling);
  plan->row_begin.push_back(plan->n_rows());
  plan->context_len.push_back(position);
  for (int i = 0; i * kPageTokens < position; ++i) plan->page_ids.push_back(sequence * kPagesEach + i);
  plan->page_begin.push_back(static_cast<int32_t>(plan->page_ids.size()));
}

int32_t TokenAt(int sequence, int position) { return (sequence * 977 + position * 131) % kVocab; }

std::vector<int32_t> TokensOf(int sequence, int begin, int end) {
  std::vector<int32_t> tokens;
  for (int t = begin; t < end; ++t) tokens.push_back(TokenAt(sequence, t));
  return tokens;
}

SamplingRow Greedy(int n_top = -1) { return {.temperature = 0, .n_top = n_top}; }

// Shapes whose products have several tiles a block and several stages, and all of decode's kernels.
struct WideCase {
  const char* name;
  Shape shape;
};
void PrintTo(const WideCase& c, std::ostream* out) { *out << c.name; }

class WideModelTest : public ::testing::TestWithParam<WideCase> {
 protected:
  static constexpr int kSequences = 16, kTokens = 200;

  std::vector<TokenOutput> Run(int first, int n_sequences, int begin, int end, int n_top = 20) {
    StepPlan plan;
    plan.Clear();
    for (int s = first; s < first + n_sequences; ++s) {
      AddTokens(s, begin, TokensOf(s, begin, end), Greedy(n_top), &plan);
    }
    return model_.Run(plan);
  }
  static std::map<int32_t, float> TopOf(const TokenOutput& output) {
    std::map<int32_t, float> of;
    for (const TokenScore& top : output.top) of[top.token] = top.logprob;
    return of;
  }
  void CheckChunks();
  void CheckSteps(int n);

  LoadedModel model_;
};

// All rows in one step, or 50 at a time, which other products and attention do.
void WideModelTest::CheckChunks() {
  const std::vector<TokenOutput> at_once = Run(0, 4, 0, kTokens);
  ASSERT_EQ(at_once.size(), 4u);
  for (int s = 0; s < 4; ++s) {
    std::vector<TokenOutput> parts;
    for (int begin = 0; begin < kTokens; begin += 50) parts = Run(s, 1, begin, begin + 50);
    ASSERT_EQ(parts.size(), 1u);
    std::map<int32_t, float> of = TopOf(parts[0]);
    for (int k = 0; k < 5; ++k) {
      const TokenScore& top = at_once[s].top[k];
      ASSERT_TRUE(of.contains(top.token)) << "sequence " << s;
      // Of a logit so far below the best one, what is rounded to bfloat16 is a part in 500.
      EXPECT_NEAR(of[top.token], top.logprob, 1.0 - top.logprob / 200) << "sequence " << s;
    }
  }
}

// The next token of n sequences, again and again.
void WideModelTest::CheckSteps(int n) {
  const std::vector<TokenOutput> first = Run(0, n, kTokens, kTokens + 1);
  ASSERT_EQ(first.size(), static_cast<size_t>(n));
  double worst = 0.0, spread = 0.0;
  std::vector<TokenOutput> second;
  for (int again = 0; again < 3; ++again) {
    const std::vector<TokenOutput> next = Run(0, n, kTokens, kTokens + 1);
    ASSERT_EQ(next.size(), first.size());
    for (int i = 0; i < n; ++i) {
      std::map<int32_t, float> of = TopOf(next[i]);
      for (int k = 0; k < 10; ++k) {
        const TokenScore& top = first[i].top[k];
        ASSERT_TRUE(of.contains(top.token)) << n << " rows, row " << i << ", run " << again;
        worst = std::max(worst, std::abs(static_cast<double>(of[top.token]) - top.logprob));
      }
      spread = std::max(spread, static_cast<double>(first[i].top[0].logprob - first[i].top[19].logprob));
      if (again > 0) {
        EXPECT_EQ(next[i].logprob, second[i].logprob) << "the recorded step's bits, row " << i;
      }
    }
    second = next;
  }
  const std::vector<TokenOutput> greedy = Run(0, n, kTokens, kTokens + 1, -1);
  ASSERT_EQ(greedy.size(), second.size());
  for (int i = 0; i < n; ++i) EXPECT_EQ(greedy[i].token, second[i].token) << "without others, row " << i;
  // The order of sums differs, and with it what is rounded to bfloat16; logits are as wide as 40.
  EXPECT_LT(worst, 1.0) << n << " rows; the best twenty lie within " << spread;
}

TEST_P(WideModelTest, AStepThatComesAgainGivesTheSame) {
  const ModelSpec spec = SpecOf(GetParam().shape);
  const MemoryTensors tensors = RandomTensors(spec, 7);
  if (!model_.Load("cuda", spec, tensors, DType::kBF16, kSequences, kVocab)) GTEST_SKIP() << model_.reason();
  CheckChunks();
  for (int s = 0; s < kSequences; s += 4) Run(s, 4, 0, kTokens);
  for (const int n : {1, 2, 3, 4, 5, 7, 8, 11, 16}) CheckSteps(n);
}

// The last is wider than 16 columns of each multiprocessor, of which a block writes more than a tile.
INSTANTIATE_TEST_SUITE_P(
    cuda, WideModelTest,
    ::testing::Values(WideCase{"h78", {78, 6, 2}}, WideCase{"h47_norm", {47, 6, 2, true}},
                      WideCase{"h32", {32, 16, 1}}, WideCase{"h100", {100, 6, 2}},
                      WideCase{"w2560", {.h = 40, .rank_q = 6, .rank = 2, .width = 2560, .mlp_width = 6826}}),
    ::testing::PrintToStringParamName());

class RecordedStepsTest : public ::testing::TestWithParam<std::string> {
 protected:
  LoadedModel gpu_;
};

// Steps known beforehand and steps launched before the tokens of the step before are known: the same bits.
// One sequence ends on the way, so that a later step's rows are others than the ones it takes tokens from.
TEST_P(RecordedStepsTest, TwoInFlightGiveWhatOneByOneGives) {
  constexpr int kMost = 16, kSteps = 12, kLast = 7;  // of the first sequence
  const ModelSpec spec = SpecOf({.h = 47, .rank_q = 6, .rank = 2, .mlp_width = 1066});
  const MemoryTensors tensors = RandomTensors(spec, 7);
  if (!gpu_.Load(GetParam(), spec, tensors, DType::kBF16, kMost, kVocab - 100)) {
    GTEST_SKIP() << gpu_.reason();
  }
  const auto context = [](int sequence) { return 55 + 9 * sequence; };
  for (int s = 0; s < kMost; ++s) {
    StepPlan plan;
    plan.Clear();
    AddTokens(s, 0, TokensOf(s, 0, context(s)), Greedy(), &plan);
    gpu_.Run(plan);
  }
  const auto sampling = [](int sequence, int step) {
    SamplingRow row = Greedy(sequence % 4 == 2 ? 3 : -1);
    if (sequence % 4 == 1) row.temperature = 20.0f;
    if (sequence % 4 == 3) row.temperature = 8.0f, row.top_k = 40, row.top_p = 0.9f, row.n_top = 0;
    row.seed = sequence, row.output_index = step;
    return row;
  };
  for (const int n : {1, 2, 3, 5, 16}) {
    const auto run = [&](bool ahead) {
      std::vector<StepPlan> plans(kSteps);
      std::vector<std::vector<TokenOutput>> outputs;
      const auto wait = [&] {
        auto result = gpu_.runner().Wait();
        EXPECT_TRUE(result.ok()) << result.status();
        outputs.push_back(result.ok() ? result->outputs : std::vector<TokenOutput>(n));
      };
      for (int step = 0; step < kSteps; ++step) {
        plans[step].Clear();
        const int first = n > 1 && step > kLast ? 1 : 0, first_before = n > 1 && step > kLast + 1 ? 1 : 0;
        for (int s = first; s < n; ++s) {
          const int of = s - first_before;  // its output of the step before
          const int32_t token = step == 0 ? TokenAt(s, context(s))
                                : ahead   ? -1 - of
                                          : outputs.back()[of].token;
          AddTokens(s, context(s) + step, {token}, sampling(s, step), &plans[step]);
        }
        EXPECT_TRUE(gpu_.runner().Launch(plans[step]).ok());
        if (!ahead || step > 0) wait();
      }
      if (ahead) wait();
      return outputs;
    };
    run(false);  // records
    const auto one_by_one = run(false), ahead = run(true);
    ASSERT_EQ(one_by_one.size(), ahead.size());
    for (int step = 0; step < kSteps; ++step) {
      ASSERT_EQ(one_by_one[step].size(), ahead[step].size());
      for (size_t i = 0; i < ahead[step].size(); ++i) {
        const TokenOutput &want = one_by_one[step][i], &got = ahead[step][i];
        EXPECT_EQ(want.token, got.token) << n << " rows, step " << step << ", row " << i;
        EXPECT_EQ(std::bit_cast<uint32_t>(want.logprob), std::bit_cast<uint32_t>(got.logprob));
      }
    }
  }
}

// A model whose logits are exact: attention and the MLP add nothing, embeddings are of ones, the head of few
// bits. `n_text` ids of kVocab have text. Token t of the first kTied has a most likely id three times or
// more.
struct ExactModel {
  static constexpr int kTied = 16, kText = 4801;

  ExactModel() : spec(SpecOf({.h = 13, .rank_q = 6, .rank = 2, .mlp_width = 512, .n_layers = 1})) {
    spec.tied_head = false;
    tensors = RandomTensors(spec, 3);
    const auto width = static_cast<size_t>(spec.width);
    for (const auto& [name, k] : {std::pair{"transformer.h.0.attn.c_proj.weight", 13 * 64},
                                  std::pair{"transformer.h.0.mlp.c_proj.weight", spec.mlp_width}}) {
      tensors.Add(name, {spec.width, k}, std::vector<float>(width * k, 0.0f));
    }
    std::mt19937 random(5);
    for (size_t i = 0; i < kVocab * width; ++i) {
      embedding.push_back(random() % 2 == 0 ? 1.0f : -1.0f);
      head.push_back(static_cast<float>(static_cast<int>(random() % 5) - 2) / 64.0f);
    }
    for (int t = 0; t < kTied; ++t) Tie(t, random);
    // All of its logits are 0 or -0.
    std::fill_n(embedding.begin() + (kTied - 1) * width, width, 0.0f);
    tensors.Add("transformer.wte.weight", {kVocab, spec.width}, embedding);
    tensors.Add("lm_head.weight", {kVocab, spec.width}, head);
  }

  // Rows of the head that give token t's embedding the same largest logit, and larger ones without text.
  void Tie(int t, std::mt19937& random) {
    // The first and the last ids with text, neighbours, and ids of other blocks.
    std::vector<int> ids = {t == 0   ? 0
                            : t == 1 ? kText - 1
                                     : kTied + static_cast<int>(random() % (kText - 40))};
    ids.push_back(std::min(ids[0] + (t % 3 == 0 ? 1 : 16 * t), kText - 1));
    ids.push_back(std::min(ids[0] + static_cast<int>(random() % 2000), kText - 1));
    const auto put = [&](int id, float scale) {
      for (int i = 0; i < spec.width; ++i)
        head[static_cast<size_t>(id) * spec.width + i] =
            scale * embedding[static_cast<size_t>(t) * spec.width + i];
    };
    for (const int id : ids) put(id, 1.0f / 32);
    put(kText + 10 * t, 1.0f / 16);
    if (t == 2) put(kText, 1.0f / 16), put(kVocab - 1, 1.0f / 16);
  }

  ModelSpec spec;
  MemoryTensors tensors;
  std::vector<float> embedding, head;  // [kVocab][width]
};

// The key that the head's product keeps for greedy rows, and rows that want more beside such.
TEST_P(RecordedStepsTest, TiesMasksAndMixedRowsAreTheCpus) {
  const ExactModel exact;
  LoadedModel cpu;
  if (!gpu_.Load(GetParam(), exact.spec, exact.tensors, DType::kBF16, 16, ExactModel::kText)) {
    GTEST_SKIP() << gpu_.reason();
  }
  ASSERT_TRUE(cpu.Load("cpu", exact.spec, exact.tensors, DType::kF32, 16, ExactModel::kText));
  const auto sampling = [](int kind, int row) {
    SamplingRow sampling = Greedy();
    sampling.seed = 11 * kind + row, sampling.output_index = row;
    if (kind % 5 == 1) sampling.n_top = 5;
    if (kind % 5 == 2) sampling.temperature = 30.0f;
    if (kind % 5 == 3) sampling.temperature = 20.0f, sampling.top_k = 100, sampling.top_p = 0.9f;
    if (kind % 5 == 4) sampling.score_token = ExactModel::kText + row;
    return sampling;
  };
  for (const int n : {1, 2, 3, 4, 5, 8, 16}) {
    for (int mix = 0; mix < 8; ++mix) {  // the first three all greedy: launched, recorded, replayed
      StepPlan plan;
      plan.Clear();
      for (int s = 0; s < n; ++s) {
        const int32_t token = mix == 2 ? 100 + s : (s * 5 + mix) % ExactModel::kTied;
        AddTokens(s, 0, {token}, sampling(mix < 3 ? 0 : mix + s, s), &plan);
      }
      const std::vector<TokenOutput> want = cpu.Run(plan), got = gpu_.Run(plan);
      ASSERT_EQ(want.size(), got.size());
      for (int s = 0; s < n; ++s) {
        SCOPED_TRACE(std::to_string(n) + " rows, mix " + std::to_string(mix) + ", row " + std::to_string(s));
        EXPECT_EQ(want[s].token, got[s].token);
        EXPECT_EQ(std::isnan(want[s].logprob), std::isnan(got[s].logprob));
        if (!std::isnan(want[s].logprob)) {
          EXPECT_NEAR(want[s].logprob, got[s].logprob, 1e-4);
        }
        ASSERT_EQ(want[s].top.size(), got[s].top.size());
        if (!got[s].top.empty()) {  // behind one without text
          EXPECT_EQ(got[s].top[1].logprob, got[s].top[2].logprob) << "no tie";
        }
        for (size_t k = 0; k < got[s].top.size(); ++k) {
          EXPECT_EQ(want[s].top[k].token, got[s].top[k].token);
          EXPECT_NEAR(want[s].top[k].logprob, got[s].top[k].logprob, 1e-4);
        }
      }
    }
  }
}

// All bits set is what stands where no block has left a number yet: as a number it must not stop a step. Nor
// may a row that is not finite change what the others give, or the steps after it.
TEST_P(RecordedStepsTest, ARowThatIsNotFiniteIsNamedAndLeavesNothing) {
  ExactModel exact;
  constexpr int kBad = 50;
  for (int i = 0; i < exact.spec.width; ++i) {
    exact.embedding[static_cast<size_t>(kBad) * exact.spec.width + i] = std::bit_cast<float>(0xffffffffu);
  }
  exact.tensors.Add("transformer.wte.weight", {kVocab, exact.spec.width}, exact.embedding);
  if (!gpu_.Load(GetParam(), exact.spec, exact.tensors, DType::kBF16, 16, ExactModel::kText)) {
    GTEST_SKIP() << gpu_.reason();
  }
  for (const int n : {1, 2, 4, 8}) {
    const auto plan_of = [n](int bad, int n_top) {
      StepPlan plan;
      plan.Clear();
      for (int s = 0; s < n; ++s) AddTokens(s, 0, {s == bad ? kBad : s}, Greedy(n_top), &plan);
      return plan;
    };
    const std::vector<TokenOutput> want = gpu_.Run(plan_of(-1, 0));
    ASSERT_EQ(want.size(), static_cast<size_t>(n));
    for (int again = 0; again < 6; ++again) {
      const int bad = again % n;
      const auto failed = gpu_.TryRun(plan_of(bad, again % 2 - 1));
      ASSERT_FALSE(failed.ok());
      EXPECT_NE(std::string(MessageOf(failed.status())).find("row " + std::to_string(bad)), std::string::npos)
          << failed.status();
      const std::vector<TokenOutput> got = gpu_.Run(plan_of(-1, 0));
      ASSERT_EQ(got.size(), want.size());
      for (int s = 0; s < n; ++s) {
        EXPECT_EQ(want[s].token, got[s].token) << "row " << s << " of " << n << ", behind " << bad;
        EXPECT_NEAR(want[s].logprob, got[s].logprob, 1e-4);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, RecordedStepsTest, ::testing::Values("cuda"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace t6
