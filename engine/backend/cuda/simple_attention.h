// Attention in the plain way, for what the fast kernels do not do: float32 pages (the goldens), unusual
// shapes, and as their twin in tests. A block a row and head; any number of rows, ranks and heads; head_dim
// up to 256.
#pragma once

#include <memory>

#include "engine/backend/cuda/attention_path.h"

namespace t6::cuda {

std::unique_ptr<AttentionPath> MakeSimpleAttention();

}  // namespace t6::cuda
