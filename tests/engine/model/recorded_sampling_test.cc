// What recorded steps of a GPU sample: with ties, masks and rows of every kind beside each other, and with
// rows that are not finite.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/engine/model/loaded_model.h"

namespace t6::testing {
namespace {

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

class RecordedSamplingTest : public ::testing::TestWithParam<std::string> {
 protected:
  LoadedModel gpu_;
};

// The key that the head's product keeps for greedy rows, and rows that want more beside such.
TEST_P(RecordedSamplingTest, TiesMasksAndMixedRowsAreTheCpus) {
  const ExactModel exact;
  LoadedModel cpu;
  if (!gpu_.Load(GetParam(), exact.spec, exact.tensors, DType::kBF16, DType::kBF16, 16, ExactModel::kText)) {
    GTEST_SKIP() << gpu_.reason();
  }
  ASSERT_TRUE(cpu.Load("cpu", exact.spec, exact.tensors, DType::kF32, DType::kF32, 16, ExactModel::kText));
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
TEST_P(RecordedSamplingTest, ARowThatIsNotFiniteIsNamedAndLeavesNothing) {
  ExactModel exact;
  constexpr int kBad = 50;
  for (int i = 0; i < exact.spec.width; ++i) {
    exact.embedding[static_cast<size_t>(kBad) * exact.spec.width + i] = std::bit_cast<float>(0xffffffffu);
  }
  exact.tensors.Add("transformer.wte.weight", {kVocab, exact.spec.width}, exact.embedding);
  if (!gpu_.Load(GetParam(), exact.spec, exact.tensors, DType::kBF16, DType::kBF16, 16, ExactModel::kText)) {
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

INSTANTIATE_TEST_SUITE_P(Devices, RecordedSamplingTest, ::testing::Values("cuda"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace t6::testing
