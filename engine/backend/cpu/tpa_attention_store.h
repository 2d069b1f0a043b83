// Writes the factors of one step's rows into their pages. The same bytes whichever rows are written together.
#pragma once

#include "engine/backend/cpu/tpa_attention_kernels.h"
#include "engine/backend/params.h"

namespace t6::cpu {

// Floats that storing a row needs beside.
size_t StoreScratchFloats(const AttentionSpec& spec);
// Asks for the lines that a row's A goes to, one each for rank and head, before they are written.
void ExpectFactorRow(const StoreFactorsParams& params, int slot);
// Two calls at a time must not be of the same row.
void StoreFactorRow(const AttentionKernels& kernels, const StoreFactorsParams& params, const StepPlan& plan,
                    int row, float* scratch);

}  // namespace t6::cpu
