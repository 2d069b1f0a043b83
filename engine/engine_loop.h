// The engine without a model: inbox, one thread, and the loop plan -> run -> commit over any StepRunner. The
// real engine gives it a ModelRunner, tests a fake. Owns the cache manager, the scheduler and the thread.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/cache/cache_manager.h"
#include "engine/engine.h"
#include "engine/schedule/scheduler.h"
#include "engine/step_runner.h"

namespace t6 {

struct EngineLoopConfig {
  SchedulerConfig scheduler;
  int max_queued_requests = 1024;
  int64_t max_queued_tokens = 1 << 22;
  int max_queued_per_tenant = 0;  // as EngineConfig
  std::string cache_key;          // names model and types in every page's key
};

class EngineLoop final : public Engine {
 public:
  // `runner`, `metrics` and `clock` outlive the loop.
  EngineLoop(const EngineLoopConfig& config, ModelInfo info, StepRunner* runner, EngineMetrics* metrics,
             const Clock* clock);
  ~EngineLoop() override;  // cancels what is left

  const ModelInfo& info() const override { return info_; }
  StatusOr<std::shared_ptr<EventStream>> Submit(GenerationRequest request) override;
  void Cancel(RequestId id) override { Post({id, Command::kCancel}); }
  void Finish(RequestId id) override { Post({id, Command::kFinish}); }
  void ClearPrefixes() override { Post({0, Command::kClearPrefixes}); }
  void StopAdmission() override;
  bool Drain(absl::Time deadline) override;
  EngineStats stats() const override;
  Status health() const override;

 private:
  enum class Command : uint8_t { kCancel, kFinish, kClearPrefixes };
  struct Order {
    RequestId id;
    Command command;
  };
  struct Submission {
    GenerationRequest request;
    std::shared_ptr<EventStream> stream;
  };
  struct Inbox {
    std::vector<Submission> submissions;
    std::vector<Order> orders;
    int64_t tokens = 0;   // prompt tokens of the submissions
    TenantLines tenants;  // of these submissions
    bool stop = false;
    bool empty() const { return submissions.empty() && orders.empty() && !stop; }
  };

  Status CheckRequest(const GenerationRequest& request) const;
  Status CheckRoom(const GenerationRequest& request) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Post(Order order) ABSL_LOCKS_EXCLUDED(mutex_);
  void Loop();
  // What came in since the last call; sleeps while there is neither that nor anything to run.
  Inbox TakeInbox() ABSL_LOCKS_EXCLUDED(mutex_);
  void Apply(Inbox inbox);
  Status RunStep();
  Status CommitStep();
  void ForgetSteps();
  void Fail(const Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void PublishState() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasInbox() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return !inbox_.empty(); }
  bool IsIdle() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return idle_ && inbox_.empty(); }

  const EngineLoopConfig config_;
  const ModelInfo info_;
  StepRunner* const runner_;
  EngineMetrics* const metrics_;
  const Clock* const clock_;

  // The engine thread's own.
  CacheManager cache_;
  Scheduler scheduler_;
  std::array<StepPlan, 2> plans_;  // the one in flight must not change while the next is made
  size_t next_plan_ = 0;
  std::deque<absl::Time> launched_at_;  // of the steps in flight, oldest first
  absl::Time last_done_at_ = absl::InfinitePast();

  mutable absl::Mutex mutex_;
  Inbox inbox_ ABSL_GUARDED_BY(mutex_);
  bool idle_ ABSL_GUARDED_BY(mutex_) = true;
  bool admitting_ ABSL_GUARDED_BY(mutex_) = true;
  Status health_ ABSL_GUARDED_BY(mutex_);
  EngineStats stats_ ABSL_GUARDED_BY(mutex_);
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  TenantLines tenant_lines_ ABSL_GUARDED_BY(mutex_);
  std::atomic<RequestId> next_id_{1};
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace t6
