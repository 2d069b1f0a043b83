#include "engine/backend/cpu/sample.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

#include "engine/backend/cpu/sample_ops.h"
#include "engine/backend/philox.h"

namespace t6::cpu {
namespace {

constexpr float kGreedyBelow = 1e-5f;
// What a worker looks at in one go. Its share of all pieces is about its share of the product that made them,
// so that it finds them in its own cache.
constexpr int kPieceColumns = 1024;

// Ascending keys are descending logits, and among equals ascending ids.
uint64_t LikelyFirst(float logit, int32_t id) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);  // -0 becomes 0, its equal
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<uint64_t>(~ascending) << 32) | static_cast<uint32_t>(id);
}
int32_t IdOf(uint64_t key) { return static_cast<int32_t>(key); }

// Moves to the front the fewest smallest keys whose weights sum to `wanted`, at least one, and returns how
// many they are. Halves instead of sorting: a flat distribution over a large vocabulary has no short nucleus.
size_t CountToMass(std::vector<uint64_t>& keys, const std::vector<float>& weights, double wanted) {
  size_t begin = 0, end = keys.size();
  double passed = 0;
  while (end - begin > 1) {
    const size_t middle = begin + (end - begin) / 2;
    const auto at = [&](size_t i) { return keys.begin() + static_cast<ptrdiff_t>(i); };
    std::nth_element(at(begin), at(middle), at(end));
    double mass = 0;
    for (size_t i = begin; i < middle; ++i) mass += weights[IdOf(keys[i])];
    if (passed + mass >= wanted) {
      end = middle;
    } else {
      passed += mass;
      begin = middle;
    }
  }
  return end;
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
  const std::vector<float>& weights = scratch.weights;
  const size_t n = weights.size();
  const size_t top_k = row.top_k > 0 ? std::min(static_cast<size_t>(row.top_k), n) : 0;
  // Few ids matter as a rule: look among the likely ones first, and widen the circle only when that is not
  // enough.
  std::vector<int32_t>& ids = scratch.ids;
  double mass = 0;
  for (const float threshold : {1e-3f, 1e-6f, 0.0f}) {
    ids.clear();
    CollectAtLeast(weights.data(), static_cast<int>(n), threshold, &ids);
    mass = 0;
    for (const int32_t id : ids) mass += weights[id];
    if (top_k > 0 ? ids.size() >= top_k : mass >= row.top_p * total) break;
  }
  std::vector<uint64_t>& keys = scratch.keys;
  keys.clear();
  for (const int32_t id : ids) keys.push_back(LikelyFirst(logits[id], id));
  if (top_k > 0 && top_k < keys.size()) {
    std::nth_element(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(top_k), keys.end());
    keys.resize(top_k);
  }
  if (top_k > 0) {
    total = 0;
    for (const uint64_t key : keys) total += weights[IdOf(key)];
  }
  if (row.top_p < 1.0f) keys.resize(CountToMass(keys, weights, row.top_p * total));
  ids.clear();
  mass = 0;
  for (const uint64_t key : keys) {
    ids.push_back(IdOf(key));
    mass += weights[IdOf(key)];
  }
  std::sort(ids.begin(), ids.end());
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
    output->token = FirstIndexOf(logits, n_text, text.max);
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

Sampler::Best Sampler::BestOf(const float* logits, int begin, int end, int n_text) {
  const int text_end = std::clamp(n_text, begin, end);
  Best best{-1, 0.0f, true};
  if (text_end > begin) {
    const RowScan text = ScanRow(logits + begin, text_end - begin);
    best = {begin + FirstIndexOf(logits + begin, text_end - begin, text.max), text.max, text.finite};
  }
  if (text_end < end) best.finite = ScanRow(logits + text_end, end - text_end).finite && best.finite;
  return best;
}

int Sampler::RunGreedy(const SampleParams& params, int n_rows, std::vector<TokenOutput>* outputs) {
  const int n_text = std::clamp(params.n_text_tokens, 1, params.vocab);
  const int n_pieces = (params.vocab + kPieceColumns - 1) / kPieceColumns;
  best_.resize(static_cast<size_t>(n_pieces) * n_rows);
  pool_->RunSticky(n_pieces, 1, [&](int piece, int /*end*/, int /*worker*/) {
    const int begin = piece * kPieceColumns, end = std::min(params.vocab, begin + kPieceColumns);
    for (int row = 0; row < n_rows; ++row) {
      const float* logits = params.logits + static_cast<size_t>(row) * params.vocab;
      best_[static_cast<size_t>(piece) * n_rows + row] = BestOf(logits, begin, end, n_text);
    }
  });
  for (int row = 0; row < n_rows; ++row) {
    Best best = best_[row];
    for (int piece = 1; piece < n_pieces; ++piece) {
      const Best& other = best_[static_cast<size_t>(piece) * n_rows + row];
      const bool finite = best.finite && other.finite;
      if (other.token >= 0 && other.logit > best.logit) best = other;
      best.finite = finite;
    }
    if (!best.finite) return row;
    (*outputs)[row] = {.token = best.token, .logprob = std::numeric_limits<float>::quiet_NaN(), .top = {}};
  }
  return n_rows;
}

int Sampler::RunRows(const SampleParams& params, const std::vector<SamplingRow>& rows,
                     std::vector<TokenOutput>* outputs) {
  const int n_rows = static_cast<int>(rows.size());
  std::atomic<int> first_bad{n_rows};
  pool_->Run(n_rows, [&](int i, int worker) {
    const float* logits = params.logits + static_cast<size_t>(i) * params.vocab;
    if (RunRow(params, rows[i], logits, scratch_[worker], &(*outputs)[i])) return;
    int seen = first_bad.load();
    while (i < seen && !first_bad.compare_exchange_weak(seen, i)) {
    }
  });
  return first_bad.load();
}

Status Sampler::Run(const SampleParams& params, const std::vector<SamplingRow>& rows,
                    std::vector<TokenOutput>* outputs) {
  const int n_rows = static_cast<int>(rows.size());
  outputs->resize(rows.size());
  const bool greedy = n_rows > 1 && std::all_of(rows.begin(), rows.end(), [](const SamplingRow& row) {
                        return row.score_token < 0 && row.n_top < 0 && row.temperature < kGreedyBelow;
                      });
  const int bad = greedy ? RunGreedy(params, n_rows, outputs) : RunRows(params, rows, outputs);
  if (bad < n_rows) return Internal("the logits of output row {} are not all finite", bad);
  return absl::OkStatus();
}

}  // namespace t6::cpu
