// Runs one planned step: the seam between the engine's loop and everything that computes. On the CPU Launch
// does the work; on a GPU it enqueues it, and the next step is planned before Wait. Called by the engine
// thread alone.
#pragma once

#include "engine/base/status.h"
#include "engine/schedule/step_plan.h"

namespace t6 {

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // `plan` must stay unchanged until Wait returns.
  virtual Status Launch(const StepPlan& plan) = 0;
  virtual StatusOr<StepResult> Wait() = 0;
};

}  // namespace t6
