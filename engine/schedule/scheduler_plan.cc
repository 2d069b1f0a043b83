// What the next step computes. Running sequences first, oldest first: each gets its rows and its pages, and
// may preempt younger ones, which then have not been given anything yet. What is left goes to the line.
#include <algorithm>
#include <limits>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/page_tokens.h"
#include "engine/schedule/scheduler.h"

namespace t6 {
namespace {

int PagesFor(int n_tokens) { return (n_tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace

bool Scheduler::Plan(StepPlan* plan) {
  T6_CHECK(n_steps_in_flight() < config_.pipeline_depth);
  plan->Clear();
  ExpireDeadlines();
  UpdateTurns();
  Step step;
  Budget budget = MakeBudget();
  for (size_t i = 0; i < running_.size(); ++i) {  // shrinks behind i when a younger one is preempted
    Sequence* s = running_[i];
    if (s->planned >= s->n_plannable()) continue;  // its next token is in flight, and the last one
    if (s->decodes()) {
      PlanDecode(s, plan, &step);
    } else {
      PlanPrefill(s, /*may_preempt=*/true, &budget, plan, &step);
    }
  }
  Admit(&budget, plan, &step);
  UpdateGauges();
  if (step.parts.empty()) {
    T6_CHECK(plan->copy_pages.empty() && plan->clear_pages.empty());
    T6_CHECK(!steps_.empty() || idle(), "{} sequences, none of which can go on", sequences_.size());
    return false;
  }
  WritePlan(&step, plan);
  steps_.push_back(std::move(step));
  return true;
}

void Scheduler::ExpireDeadlines() {
  if (deadlines_.empty()) return;
  const absl::Time now = clock_->Now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    TokenEvent event;
    event.finish = FinishReason::kCancelled;
    event.status = Status(absl::StatusCode::kDeadlineExceeded, "the request's deadline has passed");
    End(sequences_.at(deadlines_.begin()->second).get(), std::move(event));
  }
}

// The first of every tenant goes before the second of any, however many one tenant has sent and whatever
// priorities it gave them; and when pages run out, who has most gives way first.
void Scheduler::UpdateTurns() {
  if (!std::exchange(turns_are_stale_, false)) return;
  const std::vector<Sequence*> in_line(waiting_.begin(), waiting_.end());
  waiting_.clear();
  const bool several = tenants_.size() > 1;
  for (auto& [name, tenant] : tenants_) {
    if (!several) tenant.n_served = turn_now_ = 0;
    int64_t turn = tenant.n_served;
    for (Sequence* s : tenant.sequences) s->turn = several ? turn++ : 0;
  }
  waiting_.insert(in_line.begin(), in_line.end());
  std::sort(running_.begin(), running_.end(), &Sequence::Older);
}

Scheduler::Budget Scheduler::MakeBudget() const {
  Budget budget{.prefill_rows = config_.max_step_rows,
                .prefill_outputs = config_.max_outputs,
                .cost = {},
                .limit_ms = std::numeric_limits<double>::infinity()};
  for (const Sequence* s : running_) {
    if (!s->decodes()) continue;
    budget.cost.Add(s->planned, 1);
    --budget.prefill_rows;
    --budget.prefill_outputs;
  }
  if (budget.cost.rows > 0) {
    // A quarter of a step is left to prefill however much decodes, so that it gets on.
    budget.limit_ms =
        std::max(config_.max_step_ms, cost_model_.Estimate(budget.cost) + config_.max_step_ms / 4);
  }
  return budget;
}

bool Scheduler::PlanDecode(Sequence* s, StepPlan* plan, Step* step) {
  if (!TakePages(s, s->planned + 1, /*may_preempt=*/true, plan)) return false;
  AddPart(s, 1, step);
  return true;
}

bool Scheduler::PlanPrefill(Sequence* s, bool may_preempt, Budget* budget, StepPlan* plan, Step* step) {
  int n = s->RowsWithin(budget->prefill_rows, budget->prefill_outputs);
  if (n > 0 && budget->limit_ms < std::numeric_limits<double>::infinity()) {
    const int affordable = cost_model_.RowsFor(budget->cost, s->planned, n, budget->limit_ms);
    n = std::max(affordable, budget->any_prefill ? 0 : 1);
  }
  if (n == 0) return false;
  if (!TakePages(s, s->planned + n, may_preempt, plan)) {
    n = std::min(
        n, static_cast<int>(s->pages.size()) * kPageTokens - s->planned);  // what its pages have room for
    if (n == 0) return false;
  }
  budget->any_prefill = true;
  budget->cost.Add(s->planned, n);
  budget->prefill_rows -= n;
  SamplingRow row;
  for (int i = 0; i < n; ++i) budget->prefill_outputs -= s->WantsOutput(s->planned + i, &row) ? 1 : 0;
  AddPart(s, n, step);
  return true;
}

void Scheduler::AddPart(Sequence* s, int n_rows, Step* step) {
  step->parts.push_back({.sequence = s, .first_position = s->planned, .n_rows = n_rows});
  step->cost.Add(s->planned, n_rows);
  s->planned += n_rows;
  ++s->steps_in_flight;
}

// --- pages

// False when there are not enough; the sequence keeps those it got.
bool Scheduler::TakePages(Sequence* s, int n_tokens, bool may_preempt, StepPlan* plan) {
  while (static_cast<int>(s->pages.size()) < PagesFor(n_tokens)) {
    PageRef page = cache_->TakePage();
    if (!page) {
      if (may_preempt && PreemptYoungerThan(s)) continue;
      return false;
    }
    plan->clear_pages.push_back(page.id());
    s->page_ids.push_back(page.id());
    s->pages.push_back(std::move(page));
  }
  return true;
}

// True when pages may have become free. Those of a sequence with a step in flight come when it has completed:
// until then nobody else is preempted.
bool Scheduler::PreemptYoungerThan(const Sequence* s) {
  Sequence* youngest = running_.back();
  if (n_retiring_ > 0 || !Sequence::Older(s, youngest)) return false;
  Preempt(youngest);
  return n_retiring_ == 0;
}

// Pages that running sequences will want soon: for what they have not yet computed and one page's worth of
// output.
int Scheduler::ReservedPages() const {
  int reserved = 0;
  for (const Sequence* s : running_) {
    const int soon = std::min(s->n_tokens() + config_.reserve_tokens, s->n_prompt + s->output_limit);
    reserved += std::max(0, PagesFor(soon) - static_cast<int>(s->pages.size()));
  }
  return reserved;
}

// --- admission

void Scheduler::Admit(Budget* budget, StepPlan* plan, Step* step) {
  // Who waits for a prefix lets others pass, but keeps a slot, so that those others cannot starve it.
  int slots = config_.max_num_seqs - n_running();
  for (auto it = waiting_.begin(); it != waiting_.end() && slots > 0; --slots) {
    Sequence* s = *it++;
    const bool exhausted =
        budget->prefill_rows <= 0 || budget->prefill_outputs <= 0 ||
        (budget->any_prefill && cost_model_.RowsFor(budget->cost, 0, 1, budget->limit_ms) == 0);
    if (exhausted && s->looked_for_prefix) continue;
    s->looked_for_prefix = true;
    if (WaitsForPrefix(s) || exhausted) continue;
    if (!AdmitOne(s, plan, step)) return;
    PlanPrefill(s, /*may_preempt=*/false, budget, plan, step);
  }
}

bool Scheduler::AdmitOne(Sequence* s, StepPlan* plan, Step* step) {
  const bool alone = running_.empty();
  const int reserved = alone ? 0 : ReservedPages();
  if (!alone && cache_->n_available() < s->pages_wanted + reserved) return false;
  PrefixMatch match = cache_->Match(&s->cursor, s->tokens, s->max_match());
  s->pages_wanted = PagesFor(s->n_tokens()) - static_cast<int>(match.pages.size());
  if (!alone && cache_->n_available() < s->pages_wanted + reserved) {
    s->cursor.Reset();
    return false;
  }
  s->pages = std::move(match.pages);
  if (match.partial_tokens > 0) {
    // With no page left for a copy, those tokens are computed.
    if (PageRef copy = cache_->TakePage()) {
      plan->copy_pages.push_back(
          {.source = match.partial.id(), .destination = copy.id(), .valid_tokens = match.partial_tokens});
      step->held.push_back(std::move(match.partial));
      s->pages.push_back(std::move(copy));
    } else {
      match.partial_tokens = 0;
    }
  }
  for (const PageRef& page : s->pages) s->page_ids.push_back(page.id());
  const int matched = s->cursor.n_full() * kPageTokens + match.partial_tokens;
  s->computed = s->planned = matched;
  LeaveLine(s);
  s->state = SequenceState::kRunning;
  turn_now_ = std::max(turn_now_, s->turn);
  running_.insert(std::upper_bound(running_.begin(), running_.end(), s, &Sequence::Older), s);
  CountAdmission(s, matched);
  return true;
}

void Scheduler::CountAdmission(Sequence* s, int matched) {
  if (s->cached_tokens >= 0) return;  // comes back after preemption
  s->cached_tokens = matched;
  s->queue_time = clock_->Now() - s->submitted_at;
  if (metrics_ == nullptr) return;
  metrics_->prompt_tokens.Increment(s->n_prompt);
  metrics_->prefix_queries.Increment(s->n_prompt);
  metrics_->prefix_hits.Increment(matched);
  metrics_->tokens_reused_device.Increment(matched);
  metrics_->queue_time.Observe(absl::ToDoubleSeconds(s->queue_time));
}

// Whether a running sequence is just computing more of this one's prefix than is cached.
bool Scheduler::WaitsForPrefix(Sequence* s) {
  if (s->wait_until > 0) {
    const auto it = sequences_.find(s->waits_for);
    if (it != sequences_.end() && it->second->state == SequenceState::kRunning &&
        it->second->computed < s->wait_until) {
      return true;
    }
    s->wait_until = 0;  // it is written, or its writer is gone
  }
  const int limit = s->max_match();
  int longest = 0;
  for (const Sequence* other : running_) {
    if (other->n_tokens() - other->computed < config_.min_wait_tokens) continue;
    if (!(other->cursor.root() == s->cursor.root())) continue;
    const int most = std::min(limit, other->n_tokens());
    const auto end = s->tokens.begin() + most;
    const int common = static_cast<int>(std::mismatch(s->tokens.begin(), end, other->tokens.begin()).first -
                                        s->tokens.begin());
    if (common <= longest || common <= other->computed) continue;
    longest = common;
    s->waits_for = other->id();
  }
  if (longest < config_.min_wait_tokens) return false;
  if (longest - cache_->MatchLength(s->cursor, s->tokens, limit) < config_.min_wait_tokens) return false;
  s->wait_until = longest;
  if (!std::exchange(s->waited_for_prefix, true)) {
    ++n_prefix_waits_;
    if (metrics_ != nullptr) metrics_->prefill_waits_shared.Increment();
  }
  return true;
}

// --- writing it down

void Scheduler::WritePlan(Step* step, StepPlan* plan) {
  // Sequences of one row first, those that share pages together; then the chunks, in order of age.
  auto& parts = step->parts;
  const auto chunks =
      std::stable_partition(parts.begin(), parts.end(), [](const Part& p) { return p.n_rows == 1; });
  page_lists_.clear();
  for (auto it = parts.begin(); it != chunks; ++it) page_lists_.push_back(it->sequence->page_ids);
  GroupByPrefix(page_lists_, &group_order_, &plan->shared_prefixes);
  std::vector<Part> ordered;
  ordered.reserve(parts.size());
  for (int i : group_order_) ordered.push_back(parts[i]);
  ordered.insert(ordered.end(), chunks, parts.end());
  parts = std::move(ordered);
  for (Part& part : parts) WritePart(&part, plan);
  step->n_outputs = plan->n_outputs();
}

void Scheduler::WritePart(Part* part, StepPlan* plan) {
  Sequence* s = part->sequence;
  part->first_output = plan->n_outputs();
  const int end = part->first_position + part->n_rows;
  for (int position = part->first_position; position < end; ++position) {
    const bool known = position < s->n_tokens();
    SamplingRow row;
    if (s->WantsOutput(position, &row)) {
      plan->output_rows.push_back(plan->n_rows());
      plan->sampling.push_back(row);
      part->samples = row.score_token < 0;
    }
    plan->token_ids.push_back(known ? s->tokens[position] : -1 - s->sample_row);
    plan->positions.push_back(position);
    plan->slots.push_back(s->page_ids[position / kPageTokens] * kPageTokens + position % kPageTokens);
  }
  part->n_outputs = plan->n_outputs() - part->first_output;
  if (part->samples) {
    s->sample_row = plan->n_outputs() - 1;
    ++s->samples_in_flight;
  }
  plan->row_begin.push_back(plan->n_rows());
  plan->context_len.push_back(end);
  plan->page_ids.insert(plan->page_ids.end(), s->page_ids.begin(), s->page_ids.begin() + PagesFor(end));
  plan->page_begin.push_back(static_cast<int32_t>(plan->page_ids.size()));
}

}  // namespace t6
