#include "engine/engine_loop.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

namespace t6 {
namespace {

EngineLoopConfig Checked(EngineLoopConfig config) {
  if (config.max_queued_per_tenant <= 0)
    config.max_queued_per_tenant = std::max(config.max_queued_requests / 2, 1);
  return config;
}

}  // namespace

EngineLoop::EngineLoop(const EngineLoopConfig& config, ModelInfo info, StepRunner* runner,
                       EngineMetrics* metrics, const Clock* clock)
    : config_(Checked(config)),
      info_(std::move(info)),
      runner_(runner),
      metrics_(metrics),
      clock_(clock),
      cache_(info_.memory.n_pages, config.cache_key),
      scheduler_(config.scheduler, &cache_, metrics, clock) {
  T6_CHECK(config_.scheduler.pipeline_depth <= static_cast<int>(plans_.size()),
           "{} steps in flight, and plans for {}", config_.scheduler.pipeline_depth, plans_.size());
  metrics_->SetCacheConfig(kPageTokens, info_.memory.n_pages, info_.cache_dtype);
  metrics_->max_num_seqs.Set(config.scheduler.max_num_seqs);
  PublishState();
  thread_ = std::thread([this] { Loop(); });
}

EngineLoop::~EngineLoop() {
  {
    absl::MutexLock lock(&mutex_);
    admitting_ = false;
    inbox_.stop = true;
  }
  thread_.join();
}

Status EngineLoop::CheckRequest(const GenerationRequest& request) const {
  if (request.prompt.empty()) return InvalidArgument("the prompt has no tokens; send at least one");
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    const int32_t id = request.prompt[i];
    if (id < 0 || id >= info_.vocab_size) {
      return InvalidArgument("token id {} at position {} of the prompt is outside the vocabulary of {}", id,
                             i, info_.vocab_size);
    }
  }
  return scheduler_.Check(request);
}

Status EngineLoop::CheckRoom(const GenerationRequest& request) const {
  const int64_t n_tokens = static_cast<int64_t>(request.prompt.size());
  const int64_t queued = stats_.waiting + static_cast<int64_t>(inbox_.submissions.size());
  if (queued >= config_.max_queued_requests) {
    return ResourceExhausted("{} requests are waiting, the most that --max-queued-requests allows", queued);
  }
  const int64_t queued_tokens = waiting_tokens_ + inbox_.tokens;
  if (queued > 0 && queued_tokens + n_tokens > config_.max_queued_tokens) {
    return ResourceExhausted("{} prompt tokens are waiting; {} more would exceed the bound of {}",
                             queued_tokens, n_tokens, config_.max_queued_tokens);
  }
  if (request.tenant.empty()) return absl::OkStatus();
  TenantLine mine;
  for (const TenantLines* lines : {&tenant_lines_, &inbox_.tenants}) {
    const auto found = lines->find(request.tenant);
    if (found != lines->end()) mine.Add(found->second);
  }
  if (mine.requests >= config_.max_queued_per_tenant) {
    return ResourceExhausted(
        "{} requests of this tenant are waiting, the most that --max-queued-per-tenant allows",
        mine.requests);
  }
  const int64_t bound = config_.max_queued_tokens / 2;
  if (mine.requests > 0 && mine.tokens + n_tokens > bound) {
    return ResourceExhausted(
        "{} prompt tokens of this tenant are waiting; {} more would exceed the bound of {}", mine.tokens,
        n_tokens, bound);
  }
  return absl::OkStatus();
}

StatusOr<std::shared_ptr<EventStream>> EngineLoop::Submit(GenerationRequest request) {
  T6_RETURN_IF_ERROR(CheckRequest(request));
  auto stream = std::make_shared<EventStream>(next_id_.fetch_add(1, std::memory_order_relaxed));
  const int64_t n_tokens = static_cast<int64_t>(request.prompt.size());
  absl::MutexLock lock(&mutex_);
  if (!health_.ok()) return Unavailable("the engine has failed: {}", MessageOf(health_));
  if (!admitting_) return Unavailable("the server is shutting down");
  T6_RETURN_IF_ERROR(CheckRoom(request));
  inbox_.tokens += n_tokens;
  if (!request.tenant.empty()) inbox_.tenants[request.tenant].Add({1, n_tokens});
  inbox_.submissions.push_back({std::move(request), stream});
  return stream;
}

void EngineLoop::Post(Order order) {
  absl::MutexLock lock(&mutex_);
  inbox_.orders.push_back(order);
}

void EngineLoop::StopAdmission() {
  absl::MutexLock lock(&mutex_);
  admitting_ = false;
}

bool EngineLoop::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(this, &EngineLoop::IsIdle), deadline);
}

EngineStats EngineLoop::stats() const {
  absl::MutexLock lock(&mutex_);
  EngineStats stats = stats_;
  stats.waiting += static_cast<int>(inbox_.submissions.size());
  return stats;
}

Status EngineLoop::health() const {
  absl::MutexLock lock(&mutex_);
  return health_;
}

EngineLoop::Inbox EngineLoop::TakeInbox() {
  absl::MutexLock lock(&mutex_);
  if (scheduler_.idle()) mutex_.Await(absl::Condition(this, &EngineLoop::HasInbox));
  // Between taking the inbox and publishing the new state the engine is not idle, or Drain would see a gap.
  if (!inbox_.empty()) idle_ = false;
  // Until a plan says otherwise what was taken waits, or Submit would let more in than its bounds allow.
  stats_.waiting += static_cast<int>(inbox_.submissions.size());
  waiting_tokens_ += inbox_.tokens;
  for (const auto& [tenant, line] : inbox_.tenants) tenant_lines_[tenant].Add(line);
  return std::exchange(inbox_, Inbox{});
}

void EngineLoop::Apply(Inbox inbox) {
  for (Submission& submission : inbox.submissions) {
    auto stream = submission.stream;
    if (Status status = scheduler_.Add(std::move(submission.request), std::move(submission.stream));
        !status.ok()) {
      TokenEvent event;
      event.finish = FinishReason::kError;
      event.status = std::move(status);
      stream->Push(std::move(event));
    }
  }
  for (const Order& order : inbox.orders) {
    switch (order.command) {
      case Command::kCancel:
        scheduler_.Cancel(order.id);
        break;
      case Command::kFinish:
        scheduler_.Finish(order.id);
        break;
      case Command::kClearPrefixes:
        cache_.Clear();
        break;
    }
  }
}

void EngineLoop::Loop() {
  Status failure;  // of the device, for good: what came in before Submit knew of it ends with it too
  while (true) {
    Inbox inbox = TakeInbox();
    const bool stop = inbox.stop;
    Apply(std::move(inbox));
    if (stop) {
      ForgetSteps();
      scheduler_.FailAll(Status(absl::StatusCode::kCancelled, "the server stopped"));
      PublishState();
      return;
    }
    if (failure.ok()) failure = RunStep();
    if (!failure.ok()) Fail(failure);
    PublishState();
  }
}

// Launches the next step, then waits for the oldest if as many are in flight as may be, or if there is
// nothing to launch before its tokens are known. At depth one that is the step itself; at depth two the
// device computes a step while the host plans the next.
Status EngineLoop::RunStep() {
  const absl::Time planned_at = absl::Now();
  StepPlan& plan = plans_[next_plan_];
  const bool launches = scheduler_.Plan(&plan);
  if (launches) {
    const absl::Time launched_at = absl::Now();
    PublishState();  // a step takes a while
    metrics_->step_plan_seconds.Increment(absl::ToDoubleSeconds(launched_at - planned_at));
    T6_RETURN_IF_ERROR(runner_->Launch(plan));
    launched_at_.push_back(launched_at);
    next_plan_ = (next_plan_ + 1) % plans_.size();
  }
  const bool is_full = static_cast<int>(launched_at_.size()) >= config_.scheduler.pipeline_depth;
  return is_full || (!launches && !launched_at_.empty()) ? CommitStep() : absl::OkStatus();
}

Status EngineLoop::CommitStep() {
  const absl::Time begun_at = std::max(launched_at_.front(), last_done_at_);
  launched_at_.pop_front();
  T6_ASSIGN_OR_RETURN(const StepResult result, runner_->Wait());
  last_done_at_ = absl::Now();
  scheduler_.Commit(result, last_done_at_ - begun_at);
  metrics_->steps.Increment();
  metrics_->step_forward_seconds.Increment(absl::ToDoubleSeconds(last_done_at_ - begun_at));
  metrics_->step_commit_seconds.Increment(absl::ToDoubleSeconds(absl::Now() - last_done_at_));
  return {};
}

// Steps in flight still write their pages: wait for them, whatever comes of it.
void EngineLoop::ForgetSteps() {
  for (; !launched_at_.empty(); launched_at_.pop_front()) runner_->Wait().status().IgnoreError();
}

// Submit refuses before anybody is told of the failure.
void EngineLoop::Fail(const Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    health_ = status;
  }
  ForgetSteps();
  scheduler_.FailAll(status);
}

void EngineLoop::PublishState() {
  absl::MutexLock lock(&mutex_);
  stats_.running = scheduler_.n_running();
  stats_.waiting = scheduler_.n_waiting();
  stats_.pages_total = cache_.n_pages();
  stats_.pages_held = cache_.n_held();
  stats_.pages_cached = cache_.n_cached();
  waiting_tokens_ = scheduler_.n_waiting_tokens();
  tenant_lines_ = scheduler_.tenant_lines();
  idle_ = scheduler_.idle();
}

}  // namespace t6
