// Attention with chosen kernels instead of the best: so that tests run every instruction set that the CPU
// has.
#pragma once

#include <memory>

#include "engine/backend/cpu/tpa_attention.h"
#include "engine/backend/cpu/tpa_attention_kernels.h"

namespace t6::cpu {

std::unique_ptr<TpaAttention> MakeTpaAttention(ThreadPool* pool, const AttentionKernels& f32,
                                               const AttentionKernels& bf16);

}  // namespace t6::cpu
