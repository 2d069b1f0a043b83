// Decides what every step computes, and what its tokens mean: admission, prefixes, pages, chunks, preemption,
// the end. Pure host code: knows the cache manager, no model and no device. Owns every Sequence. Engine
// thread only, but for Check().
//
// The loop:  while (scheduler.Plan(&plan)) { runner.Launch(plan); result = runner.Wait();
// scheduler.Commit(result, elapsed); } With pipeline_depth 2, step n+1 may be planned (into another StepPlan)
// and launched before step n is committed; steps are committed in order. Cancel, Finish and Add may be called
// between any two of these calls; they take effect at the next one.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/metrics.h"
#include "engine/base/status.h"
#include "engine/cache/cache_manager.h"
#include "engine/event_stream.h"
#include "engine/request.h"
#include "engine/schedule/cost_model.h"
#include "engine/schedule/prefix_groups.h"
#include "engine/schedule/sequence.h"
#include "engine/schedule/step_plan.h"

namespace t6 {

struct SchedulerConfig {
  int max_num_seqs = 64;
  int max_step_rows = 512;             // query tokens of one step at most; at least max_num_seqs
  int max_outputs = 512;               // output rows of one step at most; at least max_num_seqs
  int max_context = 1024;              // tokens of one sequence, prompt and output
  double max_step_ms = 25.0;           // estimated cost that a step with decoding sequences stays below
  size_t max_unread_tokens = 1 << 16;  // a reader further behind is cancelled
  int reserve_tokens =
      64;  // of output per running sequence, that admission leaves room for: the more, the fewer preemptions
  int min_wait_tokens = 16;  // a prefix in the making is worth waiting for from here
  int pipeline_depth = 1;    // steps planned and not yet committed at most: 1 or 2
  size_t page_bytes = 0;     // of all layers, for the metric
};

// What of one tenant stands in line.
struct TenantLine {
  int requests = 0;
  int64_t tokens = 0;  // of their prompts
  void Add(const TenantLine& other) {
    requests += other.requests;
    tokens += other.tokens;
  }
};
using TenantLines = std::map<std::string, TenantLine>;

class Scheduler {
 public:
  // `cache` and `clock` must outlive the scheduler; `metrics` too, or null.
  Scheduler(const SchedulerConfig& config, CacheManager* cache, EngineMetrics* metrics = nullptr,
            const Clock* clock = RealClock::Get());
  ~Scheduler();  // pushes no events: see FailAll

  // Whether a request can ever run: INVALID_ARGUMENT with both numbers when it exceeds the context or the
  // cache. Looks at constants alone: any thread.
  Status Check(const GenerationRequest& request) const;
  // Takes the request in line, under stream->id(), which must be new. Not OK (as Check): the stream was not
  // touched.
  Status Add(GenerationRequest request, std::shared_ptr<EventStream> stream);
  // kCancelled with CANCELLED. Unknown ids are ignored. Its pages are given back by the end of the step in
  // flight.
  void Cancel(RequestId id);
  // kStop: the server found a stop string.
  void Finish(RequestId id);
  // Ends everything with kError and `status` (the device failed) and forgets the steps in flight, which must
  // not run any more.
  void FailAll(const Status& status);

  // Fills `plan` with the next step. False: there is nothing to compute now, with no step in flight nothing
  // at all.
  bool Plan(StepPlan* plan);
  // What the oldest step in flight gave, and how long it took (launch to result): it calibrates the cost
  // model.
  void Commit(const StepResult& result, absl::Duration elapsed);

  int n_running() const { return static_cast<int>(running_.size()); }
  int n_waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t n_waiting_tokens() const { return n_waiting_tokens_; }     // prompt tokens in line
  const TenantLines& tenant_lines() const { return tenant_lines_; }  // who waits, but for the nameless tenant
  int n_steps_in_flight() const { return static_cast<int>(steps_.size()); }
  bool idle() const { return sequences_.empty(); }
  const CostModel& cost_model() const { return cost_model_; }
  int64_t n_preemptions() const { return n_preemptions_; }
  int64_t n_prefix_waits() const { return n_prefix_waits_; }

 private:
  // One sequence's rows in a step.
  struct Part {
    Sequence* sequence;
    int first_position;
    int n_rows;
    int first_output = 0;
    int n_outputs = 0;
    bool samples = false;  // its last output is a new token
  };
  // A step that was planned and not yet committed.
  struct Step {
    std::vector<Part> parts;
    std::vector<PageRef> held;  // until it completes: sources of copies, pages that it still writes
    StepCost cost;
    int n_outputs = 0;
  };
  // What a step may still take on while it is planned. Rows and outputs of decoding sequences are set aside
  // beforehand.
  struct Budget {
    int prefill_rows;
    int prefill_outputs;
    StepCost cost;
    double limit_ms;  // infinite while nothing decodes
    bool any_prefill = false;
  };
  using Line = std::set<Sequence*, bool (*)(const Sequence*, const Sequence*)>;
  struct Tenant {
    Line sequences;        // waiting and running, as they go first
    int64_t n_served = 0;  // before these
  };

  // --- scheduler_plan.cc: what the next step computes
  void ExpireDeadlines();
  void UpdateTurns();
  Budget MakeBudget() const;
  // Both give `s` its rows and pages in this step, false when it has to pass.
  bool PlanDecode(Sequence* s, StepPlan* plan, Step* step);
  bool PlanPrefill(Sequence* s, bool may_preempt, Budget* budget, StepPlan* plan, Step* step);
  void AddPart(Sequence* s, int n_rows, Step* step);
  bool TakePages(Sequence* s, int n_tokens, bool may_preempt, StepPlan* plan);
  bool PreemptYoungerThan(const Sequence* s);
  void Admit(Budget* budget, StepPlan* plan, Step* step);
  bool AdmitOne(Sequence* s, StepPlan* plan, Step* step);
  void CountAdmission(Sequence* s, int matched);
  bool WaitsForPrefix(Sequence* s);
  int ReservedPages() const;
  void WritePlan(Step* step, StepPlan* plan);
  void WritePart(Part* part, StepPlan* plan);

  // --- scheduler.cc: what became of it
  void CommitPart(const Part& part, const StepResult& result, absl::Time now);
  TokenEvent AcceptOutputs(const Part& part, const StepResult& result, absl::Time now);
  void CountToken(Sequence* s, absl::Time now);
  void End(Sequence* s, TokenEvent last_event);
  void Preempt(Sequence* s);
  void Retire(Sequence* s);  // leaves the running ones; settles now or when its last step has completed
  void Settle(Sequence* s);  // gives its pages back, then goes back in line or is no more
  void JoinTenant(Sequence* s);
  void LeaveTenant(Sequence* s);
  void JoinLine(Sequence* s);
  void LeaveLine(Sequence* s);
  void UpdateGauges();

  const SchedulerConfig config_;
  CacheManager* const cache_;
  EngineMetrics* const metrics_;
  const Clock* const clock_;
  CostModel cost_model_;

  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::map<std::string, Tenant> tenants_;  // of what has not ended
  bool turns_are_stale_ = false;
  int64_t turn_now_ = 0;  // of the last that was admitted
  TenantLines tenant_lines_;
  Line waiting_;                                          // oldest first
  std::vector<Sequence*> running_;                        // oldest first
  std::set<std::pair<absl::Time, RequestId>> deadlines_;  // the finite ones
  std::deque<Step> steps_;                                // in flight, oldest first
  std::vector<PageList> page_lists_;                      // reused by WritePlan
  std::vector<int> group_order_;
  int n_retiring_ = 0;
  uint64_t n_arrivals_ = 0;
  int64_t n_waiting_tokens_ = 0;
  int64_t n_preemptions_ = 0;
  int64_t n_prefix_waits_ = 0;
  int64_t n_evictions_counted_ = 0;  // in the metric
};

}  // namespace t6
