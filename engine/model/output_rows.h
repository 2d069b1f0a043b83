// The rows of a step whose logits are wanted, as a step of their own: of the last layer nobody needs more
// than these rows' attention and MLP, besides every row's factors. Pure; no thread.
#pragma once

#include "engine/schedule/step_plan.h"

namespace t6 {

// Where that saves anything: a sequence has at least so many rows.
inline constexpr int kMinRowsToKeepOutputs = 16;

// Row i of `outputs` is row output_rows[i] of `plan`, alone in a sequence of the pages that it sees; tokens
// and sampling are left out. False where the step had better go on with all rows: no sequence has many, or
// one wants several (prompt log-probabilities).
bool KeepOutputRows(const StepPlan& plan, StepPlan* outputs);

}  // namespace t6
