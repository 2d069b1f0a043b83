// Sequences with random factors in pages, and the step plans that extend them: what attention's tests run on.
// Whatever must not be read is NaN (free pages, columns not yet written) or absurd (page ids past a
// sequence's own).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "engine/backend/page_layout.h"
#include "engine/base/check.h"
#include "engine/schedule/step_plan.h"
#include "tests/support/attention_target.h"
#include "tests/support/reference_attention.h"
#include "tests/support/reference_fp8.h"

namespace t6::testing {

inline AttentionSpec MakeSpec(int h, int d, int rank_q, int rank_k, int rank_v, int rotary_dim = -1) {
  AttentionSpec spec;
  spec.n_heads = h, spec.head_dim = d;
  spec.q.rank = rank_q, spec.k.rank = rank_k, spec.v.rank = rank_v;
  spec.full_query = rank_q == 0;
  spec.rotary_dim = rotary_dim < 0 ? d / 2 * 2 : rotary_dim;
  return spec;
}

class AttentionWorld {
 public:
  struct Sequence {
    std::vector<std::vector<float>> qkv;  // of every token
    std::vector<int32_t> pages;
    std::vector<ReferenceAttention::Token> formed;  // by the reference, as far as it was asked
    int stored = 0;                                 // tokens whose factors are in pages
  };

  AttentionWorld(const AttentionSpec& spec, DType dtype, int n_pages, int max_context, uint32_t seed)
      : spec_(spec), layout_(spec, dtype), random_(seed), n_pages_(n_pages), max_context_(max_context) {
    bytes_.resize(layout_.page_bytes() * n_pages, 0xff);  // NaN in every type
    std::uniform_real_distribution<float> angle(0.0f, 6.28f);
    for (int i = 0; i < max_context * (spec.rotary_dim / 2); ++i) {
      const float a = angle(random_);
      reference_.cos.push_back(RoundToBf16(std::cos(a)));
      reference_.sin.push_back(RoundToBf16(std::sin(a)));
    }
    for (int i = 0; i < spec.head_dim; ++i) reference_.head_norm_weight.push_back(Normal());
    reference_.spec = spec;
    if (dtype == DType::kBF16) {
      // The store rounds what is float32 already.
      reference_.store = [](std::vector<double>& x) {
        for (double& v : x) v = RoundToBf16(static_cast<float>(v));
      };
    }
    if (dtype == DType::kFp8) reference_.store = RoundToFp8;
    for (int i = 0; i < n_pages; ++i) free_.push_back(i);
    std::shuffle(free_.begin(), free_.end(), random_);
  }

  // A sequence of n tokens; its first n_shared tokens (whole pages) are another's.
  int AddSequence(int n_tokens, int like = -1, int n_shared = 0) {
    Sequence s;
    if (like >= 0) {
      s.qkv.assign(sequences[like].qkv.begin(), sequences[like].qkv.begin() + n_shared);
      s.pages.assign(sequences[like].pages.begin(), sequences[like].pages.begin() + n_shared / kPageTokens);
      s.stored = n_shared;
    }
    while (static_cast<int>(s.qkv.size()) < n_tokens) {
      std::vector<float> row(spec_.qkv_elements());
      for (float& x : row) x = Normal();
      s.qkv.push_back(std::move(row));
    }
    while (static_cast<int>(s.pages.size()) * kPageTokens < n_tokens) {
      s.pages.push_back(free_.back());
      free_.pop_back();
    }
    sequences.push_back(std::move(s));
    return static_cast<int>(sequences.size()) - 1;
  }

  // A plan in which each listed sequence goes from `stored` to stored + n tokens.
  struct Rows {
    int sequence, n;
  };
  StepPlan MakePlan(const std::vector<Rows>& rows) {
    StepPlan plan;
    plan.Clear();
    qkv_.clear();
    for (const Rows& r : rows) {
      Sequence& s = sequences[r.sequence];
      for (int position = s.stored; position < s.stored + r.n; ++position) {
        plan.token_ids.push_back(0);
        plan.positions.push_back(position);
        plan.slots.push_back(s.pages[position / kPageTokens] * kPageTokens + position % kPageTokens);
        qkv_.insert(qkv_.end(), s.qkv[position].begin(), s.qkv[position].end());
      }
      s.stored += r.n;
      plan.row_begin.push_back(plan.n_rows());
      plan.context_len.push_back(s.stored);
      const int n_pages = (s.stored + kPageTokens - 1) / kPageTokens;
      plan.page_ids.insert(plan.page_ids.end(), s.pages.begin(), s.pages.begin() + n_pages);
      plan.page_ids.push_back(std::numeric_limits<int32_t>::max());
      plan.page_begin.push_back(static_cast<int32_t>(plan.page_ids.size()));
    }
    return plan;
  }

  void Store(AttentionUnderTest& attention, const StepPlan& plan) {
    Must(attention.Plan(plan, spec_));
    Must(attention.Store(store_params()));
  }

  // Stores, as the backend does, and runs: [n_rows][h * d].
  std::vector<float> Run(AttentionUnderTest& attention, const StepPlan& plan) {
    Must(attention.Plan(plan, spec_));
    Must(attention.StoreBeforeRun(store_params()));
    std::vector<float> out(static_cast<size_t>(plan.n_rows()) * spec_.n_heads * spec_.head_dim, NAN);
    Must(attention.Run({&spec_, qkv_.data(), reference_.cos.data(), reference_.sin.data(), pages(),
                        reference_.head_norm_weight.data(), out.data()}));
    return out;
  }

  // Writes the first n tokens of a sequence.
  void Prefill(AttentionUnderTest& attention, int sequence, int n) {
    while (sequences[sequence].stored < n) {
      Store(attention, MakePlan({{sequence, std::min(256, n - sequences[sequence].stored)}}));
    }
  }

  // What the row at `position` should be. `norms`: see ReferenceAttention.
  std::vector<double> Expected(int sequence, int position, std::vector<double>* norms) {
    Sequence& s = sequences[sequence];
    while (static_cast<int>(s.formed.size()) <= position) {
      const int next = static_cast<int>(s.formed.size());
      s.formed.push_back(reference_.Form(s.qkv[next], next));
    }
    return reference_.Output(s.formed, position, norms);
  }

  StepLimits limits(int max_rows) const {
    return {.max_rows = max_rows,
            .max_sequences = 64,
            .max_outputs = 64,
            .max_context = max_context_,
            .page_dtype = layout_.dtype()};
  }
  LayerPages pages() { return {bytes_.data(), &layout_, n_pages_}; }
  const AttentionSpec& spec() const { return spec_; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  const ReferenceAttention& reference() const { return reference_; }
  const std::vector<float>& qkv() const { return qkv_; }  // of the last plan  // [n_rows][qkv_elements]

  std::vector<Sequence> sequences;

 private:
  StoreFactorsParams store_params() {
    return {&spec_, qkv_.data(), reference_.cos.data(), reference_.sin.data(), pages()};
  }
  static void Must(const Status& status) { T6_CHECK(status.ok(), "{}", MessageOf(status)); }
  float Normal() { return std::normal_distribution<float>()(random_); }

  AttentionSpec spec_;
  PageLayout layout_;
  std::mt19937 random_;
  int n_pages_, max_context_;
  ReferenceAttention reference_;
  std::vector<uint8_t> bytes_;
  std::vector<int32_t> free_;
  std::vector<float> qkv_;  // of the last plan
};

}  // namespace t6::testing
