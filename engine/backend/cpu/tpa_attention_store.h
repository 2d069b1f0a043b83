// Writes the factors of one step's rows into their pages. The same bytes whichever rows are written together.
#pragma once

#include "engine/backend/cpu/tpa_attention_kernels.h"
#include "engine/backend/params.h"

namespace t6::cpu {

// Rows [begin, end) of the plan. Two calls at a time must not touch the same row.
void StoreFactorRows(const AttentionKernels& kernels, const StoreFactorsParams& params, const StepPlan& plan,
                     int begin, int end);

}  // namespace t6::cpu
