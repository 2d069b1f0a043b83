#include "engine/backend/cpu/sample.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "engine/backend/cpu/sample_ops.h"
#include "engine/sampling/philox.h"

namespace t6::cpu {
namespace {

constexpr float kGreedyBelow = 1e-5f;

// The most likely text id, ties to the lowest.
int32_t Greedy(const float* logits, int n_text, float max_of_text) {
  return FirstIndexOf(logits, n_text, max_of_text);
}

}  // namespace

int32_t Sampler::DrawFromAll(double u, double total, const Scratch& scratch) {
  const double target = u * total;
  double passed = 0;
  size_t block = 0;
  while (block + 1 < scratch.block_sums.size() && passed + scratch.block_sums[block] <= target) {
    passed += scratch.block_sums[block++];
  }
  int32_t last = -1;  // rounding may leave the target a hair past the end
  for (size_t i = block * kSumBlock; i < scratch.weights.size(); ++i) {
    if (scratch.weights[i] <= 0.0f) continue;
    passed += scratch.weights[i];
    last = static_cast<int32_t>(i);
    if (passed > target) break;
  }
  return last;
}

int32_t Sampler::DrawFromTop(const SamplingRow& row, double u, double total, const float* logits,
                             Scratch& scratch) {
  std::vector<int32_t>& ids = scratch.ids;
  const std::vector<float>& weights = scratch.weights;
  const size_t n = weights.size();
  const size_t top_k = row.top_k > 0 ? std::min(static_cast<size_t>(row.top_k), n) : 0;
  // Few ids matter as a rule: look among the likely ones first, and widen the circle only when that is not
  // enough.
  for (const float threshold : {1e-3f, 1e-6f, 0.0f}) {
    ids.clear();
    CollectAtLeast(weights.data(), static_cast<int>(n), threshold, &ids);
    double mass = 0;
    for (const int32_t id : ids) mass += weights[id];
    if (top_k > 0 ? ids.size() >= top_k : mass >= row.top_p * total) break;
  }
  const auto likelier = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  if (top_k > 0 && top_k < ids.size()) {
    std::nth_element(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(top_k), ids.end(), likelier);
    ids.resize(top_k);
  }
  if (row.top_p < 1.0f) {
    std::sort(ids.begin(), ids.end(), likelier);
    double mass = total;
    if (top_k > 0) {
      mass = 0;
      for (const int32_t id : ids) mass += weights[id];
    }
    size_t n_kept = 0;
    for (double passed = 0; n_kept < ids.size() && (n_kept == 0 || passed < row.top_p * mass); ++n_kept) {
      passed += weights[ids[n_kept]];
    }
    ids.resize(n_kept);
  }
  std::sort(ids.begin(), ids.end());
  double mass = 0;
  for (const int32_t id : ids) mass += weights[id];
  int32_t last = ids.front();
  double passed = 0;
  for (const int32_t id : ids) {
    if (weights[id] <= 0.0f) continue;
    passed += weights[id];
    last = id;
    if (passed > u * mass) break;
  }
  return last;
}

int32_t Sampler::Draw(const SamplingRow& row, const float* logits, int n, float max, Scratch& scratch) {
  scratch.weights.resize(n);
  scratch.block_sums.resize((n + kSumBlock - 1) / kSumBlock);
  ExpRow(logits, n, max, 1.0f / row.temperature, scratch.weights.data(), scratch.block_sums.data());
  double total = 0;
  for (const double sum : scratch.block_sums) total += sum;
  const double u = UniformDraw(row.seed, row.output_index);
  const bool cut = (row.top_k > 0 && row.top_k < n) || row.top_p < 1.0f;
  return cut ? DrawFromTop(row, u, total, logits, scratch) : DrawFromAll(u, total, scratch);
}

bool Sampler::RunRow(const SampleParams& params, const SamplingRow& row, const float* logits,
                     Scratch& scratch, TokenOutput* output) {
  const int vocab = params.vocab;
  const int n_text = std::clamp(params.n_text_tokens, 1, vocab);
  const RowScan text = ScanRow(logits, n_text);
  RowScan all = text;
  if (n_text < vocab) {
    const RowScan rest = ScanRow(logits + n_text, vocab - n_text);
    all = {std::max(text.max, rest.max), text.finite && rest.finite};
  }
  if (!all.finite) return false;
  if (row.score_token >= 0) {
    output->token = row.score_token;
  } else if (row.temperature < kGreedyBelow) {
    output->token = Greedy(logits, n_text, text.max);
  } else {
    output->token = Draw(row, logits, n_text, text.max, scratch);
  }
  output->logprob = std::numeric_limits<float>::quiet_NaN();
  output->top.clear();
  if (row.n_top < 0 && row.score_token < 0) return true;
  const double log_sum = all.max + std::log(SumExp(logits, vocab, all.max));
  const auto logprob = [&](float logit) { return static_cast<float>(logit - log_sum); };
  if (output->token < vocab) output->logprob = logprob(logits[output->token]);
  if (row.n_top > 0) {
    TopOfRow(logits, vocab, row.n_top, &output->top);
    for (TokenScore& score : output->top) score.logprob = logprob(score.logprob);
  }
  return true;
}

Status Sampler::Run(const SampleParams& params, const std::vector<SamplingRow>& rows,
                    std::vector<TokenOutput>* outputs) {
  const int n_rows = static_cast<int>(rows.size());
  outputs->resize(rows.size());
  std::atomic<int> first_bad{n_rows};
  pool_->Run(n_rows, [&](int i, int worker) {
    const float* logits = params.logits + static_cast<size_t>(i) * params.vocab;
    if (RunRow(params, rows[i], logits, scratch_[worker], &(*outputs)[i])) return;
    int seen = first_bad.load();
    while (i < seen && !first_bad.compare_exchange_weak(seen, i)) {
    }
  });
  const int bad = first_bad.load();
  if (bad < n_rows) return Internal("the logits of output row {} are not all finite", bad);
  return absl::OkStatus();
}

}  // namespace t6::cpu
