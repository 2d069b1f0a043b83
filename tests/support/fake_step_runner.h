// A StepRunner without a model: every token is a hash of the tokens before it, read from a shadow of the
// pages, so a page that was shared, freed, copied or cleared wrongly gives another answer or an error that
// says which slot was wrong. Answer() is its slow obvious twin: the same answer from the request alone,
// without pages, steps or batches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "engine/base/page_tokens.h"
#include "engine/base/status.h"
#include "engine/event_stream.h"
#include "engine/request.h"
#include "engine/schedule/step_plan.h"
#include "engine/step_runner.h"

namespace t6::testing {

inline uint64_t Mix(uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The hash of a sequence is Extend over its tokens, from 0.
inline uint64_t Extend(uint64_t prefix, int32_t token) {
  return Mix(prefix * 31 + static_cast<uint32_t>(token));
}

inline float FakeLogprob(uint64_t prefix, int32_t token) {
  return -static_cast<float>(Extend(prefix, token) % 4096) / 256.0f;
}

// What the model gives for a row whose tokens, itself included, hash to `prefix`.
inline TokenOutput FakeOutput(uint64_t prefix, const SamplingRow& row, int vocab) {
  uint64_t draw = prefix;
  if (row.temperature > 0) draw ^= Mix(row.seed * 1000003 + row.output_index);
  TokenOutput out;
  out.token = row.score_token >= 0 ? row.score_token : static_cast<int32_t>(Mix(draw) % vocab);
  out.logprob = row.n_top >= 0 ? FakeLogprob(prefix, out.token) : std::numeric_limits<float>::quiet_NaN();
  for (int i = 0; i < row.n_top; ++i) {
    const auto token = static_cast<int32_t>((prefix + i) % vocab);
    out.top.push_back({token, FakeLogprob(prefix, token)});
  }
  return out;
}

// All that a request's events should add up to.
inline TokenEvent Answer(const GenerationRequest& request, int max_context, int vocab) {
  TokenEvent answer;
  uint64_t prefix = 0;
  const auto& prompt = request.prompt;
  const SamplingParams& params = request.sampling;
  for (size_t i = 0; i < prompt.size(); ++i) {
    prefix = Extend(prefix, prompt[i]);
    if (i + 1 == prompt.size() || params.n_prompt_logprobs < 0) continue;
    const SamplingRow row{.score_token = prompt[i + 1], .n_top = params.n_prompt_logprobs};
    answer.prompt_scores.push_back(FakeOutput(prefix, row, vocab));
  }
  answer.finish = FinishReason::kLength;
  for (int i = 0; i < params.max_tokens && static_cast<int>(prompt.size()) + i < max_context; ++i) {
    const SamplingRow row{.temperature = params.temperature,
                          .seed = params.seed,
                          .output_index = i,
                          .n_top = params.n_logprobs};
    answer.tokens.push_back(FakeOutput(prefix, row, vocab));
    const int32_t token = answer.tokens.back().token;
    for (int32_t stop : params.stop_token_ids) {
      if (token != stop) continue;
      answer.finish = FinishReason::kStop;
      answer.stop_token = token;
      return answer;
    }
    prefix = Extend(prefix, token);
  }
  return answer;
}

struct FakeLimits {
  int max_rows = std::numeric_limits<int>::max();
  int max_sequences = std::numeric_limits<int>::max();
  int max_outputs = std::numeric_limits<int>::max();
};

class FakeStepRunner final : public StepRunner {
 public:
  FakeStepRunner(int n_pages, int vocab, FakeLimits limits = {})
      : vocab_(vocab),
        limits_(limits),
        slots_(size_t(n_pages) * kPageTokens),
        users_(n_pages),
        writer_(slots_.size()) {}

  // Called with every plan as it is launched.
  std::function<void(const StepPlan&)> on_launch;

  Status Launch(const StepPlan& plan) override {
    if (on_launch) on_launch(plan);
    if (!next_failure_.ok()) return std::exchange(next_failure_, Status());
    launched_.push_back(&plan);
    return Status();
  }

  // Runs the oldest launched plan, as late as a device might: what was freed or overwritten meanwhile is
  // noticed. INTERNAL with the slot, row or page, when the plan reads what it did not write, or is malformed.
  StatusOr<StepResult> Wait() override {
    if (launched_.empty()) return Internal("Wait without Launch");
    const StepPlan& plan = *launched_.front();
    launched_.pop_front();
    T6_RETURN_IF_ERROR(CheckShape(plan));
    T6_RETURN_IF_ERROR(CopyAndClear(plan));
    T6_RETURN_IF_ERROR(Store(plan));
    StepResult result;
    for (int s = 0; s < plan.n_sequences(); ++s) T6_RETURN_IF_ERROR(ReadSequence(plan, s, &result));
    last_outputs_.clear();
    for (const TokenOutput& output : result.outputs) last_outputs_.push_back(output.token);
    ++n_steps_;
    n_rows_ += plan.n_rows();
    return result;
  }

  void FailNext(Status status) { next_failure_ = std::move(status); }
  // What lies in a page that nobody holds must never be read.
  void Poison(int32_t page) {
    for (int i = 0; i < kPageTokens; ++i) slots_[size_t(page) * kPageTokens + i] = Slot{};
  }
  int64_t n_rows() const { return n_rows_; }  // computed so far
  int64_t n_steps() const { return n_steps_; }

 private:
  static constexpr int32_t kPoison = -2, kZero = -1;
  struct Slot {
    int32_t token = kPoison;
    int32_t position = -1;
  };

  Status CheckShape(const StepPlan& plan) const {
    const size_t rows = plan.token_ids.size(), sequences = plan.context_len.size();
    if (rows == 0 || plan.positions.size() != rows || plan.slots.size() != rows ||
        plan.row_begin.size() != sequences + 1 || plan.page_begin.size() != sequences + 1 ||
        plan.row_begin.back() != plan.n_rows() ||
        plan.page_begin.back() != static_cast<int>(plan.page_ids.size()) ||
        plan.sampling.size() != plan.output_rows.size()) {
      return Internal("the plan's arrays do not fit together: {} rows, {} sequences", rows, sequences);
    }
    if (plan.n_rows() > limits_.max_rows || plan.n_sequences() > limits_.max_sequences ||
        plan.n_outputs() > limits_.max_outputs) {
      return Internal("{} rows, {} sequences, {} outputs exceed the limits", rows, sequences,
                      plan.n_outputs());
    }
    for (int32_t page : plan.page_ids) {
      if (page < 0 || page >= static_cast<int>(users_.size())) return Internal("page id {}", page);
    }
    for (int i = 0; i < plan.n_outputs(); ++i) {
      const int row = plan.output_rows[i];
      if (row < 0 || row >= plan.n_rows() || (i > 0 && row <= plan.output_rows[i - 1])) {
        return Internal("output {} is row {}", i, row);
      }
    }
    return CheckGroups(plan);
  }

  static Status CheckGroups(const StepPlan& plan) {
    int free_from = 0;
    for (const SharedPrefix& group : plan.shared_prefixes) {
      const int end = group.first_sequence + group.n_sequences;
      if (group.first_sequence < free_from || group.n_sequences < 2 || end > plan.n_sequences() ||
          group.n_pages < 1) {
        return Internal("group of {} sequences from {}", group.n_sequences, group.first_sequence);
      }
      free_from = end;
      for (int s = group.first_sequence; s < end; ++s) {
        if (plan.page_begin[s + 1] - plan.page_begin[s] < group.n_pages)
          return Internal("sequence {} is too short", s);
        for (int p = 0; p < group.n_pages; ++p) {
          if (plan.page_ids[plan.page_begin[s] + p] !=
              plan.page_ids[plan.page_begin[group.first_sequence] + p]) {
            return Internal("sequence {} does not share page {}", s, p);
          }
        }
      }
    }
    return Status();
  }

  Status CopyAndClear(const StepPlan& plan) {
    for (const PageCopy& copy : plan.copy_pages) {
      for (int i = 0; i < kPageTokens; ++i) {
        const Slot& source = slots_[size_t(copy.source) * kPageTokens + i];
        const bool copied = i < copy.valid_tokens;
        if (copied && source.token < 0)
          return Internal("copy of page {}: slot {} is not written", copy.source, i);
        slots_[size_t(copy.destination) * kPageTokens + i] = copied ? source : Slot{kZero, -1};
      }
    }
    for (int32_t page : plan.clear_pages) {
      for (int i = 0; i < kPageTokens; ++i) slots_[size_t(page) * kPageTokens + i] = Slot{kZero, -1};
    }
    return Status();
  }

  // Stores the step's tokens, each in a slot of its own, in pages that no other sequence of the step sees.
  Status Store(const StepPlan& plan) {
    ++stamp_;
    std::fill(users_.begin(), users_.end(), 0);
    for (int32_t page : plan.page_ids) ++users_[page];
    for (int s = 0; s < plan.n_sequences(); ++s) {
      const int n_rows = plan.row_begin[s + 1] - plan.row_begin[s];
      for (int row = plan.row_begin[s]; row < plan.row_begin[s + 1]; ++row) {
        const int position = plan.context_len[s] - (plan.row_begin[s + 1] - row);
        const int page_index = plan.page_begin[s] + position / kPageTokens;
        if (n_rows < 1 || plan.positions[row] != position || page_index >= plan.page_begin[s + 1]) {
          return Internal("row {}: position {} of a context of {}", row, plan.positions[row],
                          plan.context_len[s]);
        }
        const int32_t page = plan.page_ids[page_index], slot = page * kPageTokens + position % kPageTokens;
        if (plan.slots[row] != slot) return Internal("row {}: slot {}, not {}", row, plan.slots[row], slot);
        if (users_[page] != 1) return Internal("row {} writes page {}, which is shared", row, page);
        if (std::exchange(writer_[slot], stamp_) == stamp_) return Internal("slot {} is written twice", slot);
        int32_t token = plan.token_ids[row];
        if (token < 0) {
          const size_t output = -1 - int64_t{token};
          if (output >= last_outputs_.size())
            return Internal("row {}: output {} of the last step", row, output);
          token = last_outputs_[output];
        }
        slots_[slot] = {token, position};
      }
    }
    return Status();
  }

  // Reads every token of the sequence from its pages and computes its output rows.
  Status ReadSequence(const StepPlan& plan, int s, StepResult* result) const {
    const int context = plan.context_len[s],
              first_position = context - (plan.row_begin[s + 1] - plan.row_begin[s]);
    const int n_pages = plan.page_begin[s + 1] - plan.page_begin[s];
    if (n_pages != (context + kPageTokens - 1) / kPageTokens)
      return Internal("sequence {} has {} pages", s, n_pages);
    uint64_t prefix = 0;
    for (int position = 0; position < n_pages * kPageTokens; ++position) {
      const int32_t page = plan.page_ids[plan.page_begin[s] + position / kPageTokens];
      const Slot& slot = slots_[size_t(page) * kPageTokens + position % kPageTokens];
      if (position >= context) {
        if (slot.token != kZero)
          return Internal("page {}, position {}: {}, not zero", page, position, slot.token);
        continue;
      }
      if (slot.token < 0 || slot.position != position) {
        return Internal("page {}, position {}: token {} of position {}", page, position, slot.token,
                        slot.position);
      }
      prefix = Extend(prefix, slot.token);
      if (position < first_position) continue;
      const int row = plan.row_begin[s] + position - first_position;
      const size_t output = result->outputs.size();
      if (output < plan.output_rows.size() && plan.output_rows[output] == row) {
        result->outputs.push_back(FakeOutput(prefix, plan.sampling[output], vocab_));
      }
    }
    return Status();
  }

  const int vocab_;
  const FakeLimits limits_;
  std::vector<Slot> slots_;
  std::vector<int> users_;       // [n_pages] sequences of the step that list the page
  std::vector<int64_t> writer_;  // [n_slots] the last step that wrote it
  int64_t stamp_ = 0;
  std::vector<int32_t> last_outputs_;
  std::deque<const StepPlan*> launched_;
  Status next_failure_;
  int64_t n_rows_ = 0, n_steps_ = 0;
};

}  // namespace t6::testing
