#include "engine/schedule/scheduler.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/page_tokens.h"
#include "engine/sampling/stop_rules.h"

namespace t6 {
namespace {

SchedulerConfig Checked(SchedulerConfig config) {
  config.max_num_seqs = std::max(config.max_num_seqs, 1);
  config.max_step_rows = std::max(config.max_step_rows, config.max_num_seqs);
  config.max_outputs = std::max(config.max_outputs, config.max_num_seqs);
  return config;
}

TokenEvent Ending(FinishReason reason, Status status = Status()) {
  TokenEvent event;
  event.finish = reason;
  event.status = std::move(status);
  return event;
}

const char* MetricName(FinishReason reason) {
  if (reason == FinishReason::kStop) return "stop";
  return reason == FinishReason::kLength ? "length" : "abort";
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, CacheManager* cache, EngineMetrics* metrics,
                     const Clock* clock)
    : config_(Checked(config)), cache_(cache), metrics_(metrics), clock_(clock), waiting_(&Sequence::Older) {}

Scheduler::~Scheduler() = default;

// --- requests

Status Scheduler::Check(const GenerationRequest& request) const {
  const size_t n_prompt = request.prompt.size();
  if (n_prompt == 0) return InvalidArgument("the prompt has no tokens");
  if (request.sampling.max_tokens < 0)
    return InvalidArgument("max_tokens is {}", request.sampling.max_tokens);
  if (n_prompt > static_cast<size_t>(config_.max_context)) {
    return InvalidArgument("the prompt has {} tokens, the context holds {}", n_prompt, config_.max_context);
  }
  const int64_t most = static_cast<int64_t>(n_prompt) +
                       OutputLimit(request.sampling, static_cast<int>(n_prompt), config_.max_context);
  const int64_t pages = (most + kPageTokens - 1) / kPageTokens;
  if (pages > cache_->n_pages()) {
    return InvalidArgument("prompt and output of up to {} tokens need {} pages, the cache has {}", most,
                           pages, cache_->n_pages());
  }
  return Status();
}

Status Scheduler::Add(GenerationRequest request, std::shared_ptr<EventStream> stream) {
  T6_RETURN_IF_ERROR(Check(request));
  const RequestId id = stream->id();
  if (sequences_.count(id) != 0) return InvalidArgument("request id {} is in use", id);
  const int limit =
      OutputLimit(request.sampling, static_cast<int>(request.prompt.size()), config_.max_context);
  PrefixTree::Cursor cursor = cache_->NewCursor(request.tenant, /*adapter=*/"", request.cache_salt);
  auto owned = std::make_unique<Sequence>(std::move(request), std::move(stream), std::move(cursor),
                                          n_arrivals_++, limit, clock_->Now());
  Sequence* s = owned.get();
  sequences_.emplace(id, std::move(owned));
  JoinTenant(s);
  if (s->deadline != absl::InfiniteFuture()) deadlines_.insert({s->deadline, id});
  JoinLine(s);
  UpdateGauges();
  return Status();
}

void Scheduler::Cancel(RequestId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return;
  End(it->second.get(),
      Ending(FinishReason::kCancelled, Status(absl::StatusCode::kCancelled, "the request was cancelled")));
}

void Scheduler::Finish(RequestId id) {
  const auto it = sequences_.find(id);
  if (it != sequences_.end()) End(it->second.get(), Ending(FinishReason::kStop));
}

void Scheduler::FailAll(const Status& status) {
  steps_.clear();
  std::vector<Sequence*> all;
  for (auto& [id, s] : sequences_) all.push_back(s.get());
  for (Sequence* s : all) {
    s->steps_in_flight = s->samples_in_flight = 0;
    if (s->ended()) {
      Settle(s);  // it was waiting for one of those steps
    } else {
      End(s, Ending(FinishReason::kError, status));
    }
  }
  UpdateGauges();
}

// --- after a step

void Scheduler::Commit(const StepResult& result, absl::Duration elapsed) {
  T6_CHECK(!steps_.empty());
  Step step = std::move(steps_.front());
  steps_.pop_front();
  step.held.clear();
  T6_CHECK(static_cast<int>(result.outputs.size()) == step.n_outputs, "{} outputs, {} were planned",
           result.outputs.size(), step.n_outputs);
  cost_model_.Learn(step.cost, absl::ToDoubleMilliseconds(elapsed));
  const absl::Time now = clock_->Now();
  for (const Part& part : step.parts) CommitPart(part, result, now);
  UpdateGauges();
}

void Scheduler::CommitPart(const Part& part, const StepResult& result, absl::Time now) {
  Sequence* s = part.sequence;
  --s->steps_in_flight;
  if (part.samples) --s->samples_in_flight;
  TokenEvent event;
  if (!s->ended()) event = AcceptOutputs(part, result, now);

  // What the step wrote is now fit to be shared, even if its sequence has ended meanwhile.
  s->computed = std::min(part.first_position + part.n_rows, s->n_tokens());
  std::vector<PageRef> replaced;
  cache_->Publish(&s->cursor, s->tokens, s->computed, &s->pages, &replaced);
  if (!replaced.empty()) {
    for (size_t i = 0; i < s->pages.size(); ++i) s->page_ids[i] = s->pages[i].id();
    if (!steps_.empty()) std::move(replaced.begin(), replaced.end(), std::back_inserter(steps_.back().held));
  }

  if (!s->ended() && s->output_limit == 0 && s->computed == s->n_prompt) event.finish = FinishReason::kLength;
  if (event.finish != FinishReason::kNone) return End(s, std::move(event));
  if (!event.tokens.empty() || !event.prompt_scores.empty()) {
    event.cached_tokens = s->cached_tokens;
    event.queue_time = s->queue_time;
    s->stream->Push(std::move(event));
    if (const size_t unread = s->stream->unread_tokens(); unread > config_.max_unread_tokens) {
      return End(
          s, Ending(FinishReason::kCancelled, ResourceExhausted("{} tokens were not read, the bound is {}",
                                                                unread, config_.max_unread_tokens)));
    }
  }
  if (s->state == SequenceState::kRetiring && s->steps_in_flight == 0) Settle(s);
}

TokenEvent Scheduler::AcceptOutputs(const Part& part, const StepResult& result, absl::Time now) {
  Sequence* s = part.sequence;
  TokenEvent event;
  const auto first = result.outputs.begin() + part.first_output;
  const int n_scores = part.n_outputs - (part.samples ? 1 : 0);
  event.prompt_scores.assign(first, first + n_scores);
  s->n_scored += n_scores;
  if (!part.samples) return event;
  event.tokens.push_back(*(first + n_scores));
  const int32_t token = event.tokens.back().token;
  s->tokens.push_back(token);
  CountToken(s, now);
  const StopDecision stop = CheckStop(s->sampling, s->n_prompt, s->n_outputs(), token, config_.max_context);
  event.finish = stop.finish;
  event.stop_token = stop.stop_token;
  return event;
}

void Scheduler::CountToken(Sequence* s, absl::Time now) {
  if (metrics_ != nullptr) {
    metrics_->generation_tokens.Increment();
    if (s->n_outputs() == 1) {
      metrics_->time_to_first_token.Observe(absl::ToDoubleSeconds(now - s->submitted_at));
    } else {
      metrics_->inter_token.Observe(absl::ToDoubleSeconds(now - s->last_token_at));
    }
  }
  s->last_token_at = now;
}

// --- leaving

void Scheduler::End(Sequence* s, TokenEvent last_event) {
  if (s->ended()) return;
  s->finish = last_event.finish;
  LeaveTenant(s);
  if (s->deadline != absl::InfiniteFuture()) deadlines_.erase({s->deadline, s->id()});
  if (metrics_ != nullptr) {
    metrics_->CountFinished(MetricName(s->finish));
    metrics_->e2e_latency.Observe(absl::ToDoubleSeconds(clock_->Now() - s->submitted_at));
  }
  last_event.cached_tokens = std::max(s->cached_tokens, 0);
  last_event.queue_time = s->queue_time;
  const std::shared_ptr<EventStream> stream = s->stream;
  if (s->state == SequenceState::kRunning) {
    Retire(s);
  } else if (s->state == SequenceState::kWaiting) {
    LeaveLine(s);
    s->state = SequenceState::kDone;
    sequences_.erase(s->id());
  } else if (s->steps_in_flight == 0) {
    Settle(s);
  }  // else it retires already, and will not come back
  stream->Push(std::move(last_event));
}

void Scheduler::Preempt(Sequence* s) {
  ++n_preemptions_;
  if (metrics_ != nullptr) metrics_->preemptions.Increment();
  Retire(s);
}

void Scheduler::Retire(Sequence* s) {
  running_.erase(std::find(running_.begin(), running_.end(), s));
  s->state = SequenceState::kRetiring;
  ++n_retiring_;
  if (s->steps_in_flight == 0) Settle(s);
}

void Scheduler::Settle(Sequence* s) {
  --n_retiring_;
  cache_->Release(&s->cursor, &s->pages);
  s->page_ids.clear();
  s->computed = s->planned = 0;
  if (s->ended()) {
    s->state = SequenceState::kDone;
    sequences_.erase(s->id());
  } else {
    JoinLine(s);
  }
}

// --- tenants

void Scheduler::JoinTenant(Sequence* s) {
  Tenant& tenant = tenants_.try_emplace(s->tenant, Tenant{Line(&Sequence::GoesBefore)}).first->second;
  const auto waits = [](const Sequence* other) { return other->state == SequenceState::kWaiting; };
  if (std::none_of(tenant.sequences.begin(), tenant.sequences.end(), waits)) {
    // It has no claim on what it did not ask for so far.
    tenant.n_served = std::max(tenant.n_served, turn_now_ - static_cast<int64_t>(tenant.sequences.size()));
  }
  tenant.sequences.insert(s);
  turns_are_stale_ |= tenants_.size() > 1;
}

void Scheduler::LeaveTenant(Sequence* s) {
  turns_are_stale_ |= tenants_.size() > 1;
  const auto found = tenants_.find(s->tenant);
  Tenant& tenant = found->second;
  if (s->cached_tokens >= 0) ++tenant.n_served;  // it has run
  tenant.sequences.erase(s);
  if (tenant.sequences.empty()) tenants_.erase(found);
}

// --- the line

void Scheduler::JoinLine(Sequence* s) {
  s->state = SequenceState::kWaiting;
  s->wait_until = s->pages_wanted = 0;
  s->looked_for_prefix = false;
  waiting_.insert(s);
  n_waiting_tokens_ += s->n_prompt;
  if (s->tenant.empty()) return;
  tenant_lines_[s->tenant].Add({1, s->n_prompt});
}

void Scheduler::LeaveLine(Sequence* s) {
  waiting_.erase(s);
  n_waiting_tokens_ -= s->n_prompt;
  if (s->tenant.empty()) return;
  const auto line = tenant_lines_.find(s->tenant);
  line->second.Add({-1, -s->n_prompt});
  if (line->second.requests == 0) tenant_lines_.erase(line);
}

void Scheduler::UpdateGauges() {
  if (metrics_ == nullptr) return;
  metrics_->requests_running.Set(n_running());
  metrics_->requests_waiting.Set(n_waiting());
  metrics_->cache_usage.Set(static_cast<double>(cache_->n_held()) / cache_->n_pages());
  metrics_->prefix_evictions.Increment(static_cast<double>(cache_->n_evicted() - n_evictions_counted_));
  n_evictions_counted_ = cache_->n_evicted();
  metrics_->factor_bytes_device.Set(static_cast<double>(cache_->n_held() + cache_->n_cached()) *
                                    config_.page_bytes);
}

}  // namespace t6
