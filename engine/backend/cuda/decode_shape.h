// A spec as the kernels' own plain struct, which .cu files can include.
#pragma once

#include "engine/backend/attention_spec.h"
#include "engine/backend/cuda/decode_attention.h"
#include "engine/tensor/dtype.h"

namespace t6::cuda {

inline DecodeShape ShapeOf(const AttentionSpec& spec, DType pages = DType::kBF16) {
  return {.n_heads = spec.n_heads,
          .head_dim = spec.head_dim,
          .rank = spec.k.rank,
          .rank_q = spec.full_query ? 0 : spec.q.rank,
          .rotary_dim = spec.rotary_dim,
          .logit_scale = spec.logit_scale(),
          .head_norm = spec.head_norm,
          .head_norm_eps = spec.head_norm_eps,
          .fp8 = pages == DType::kFp8};
}

}  // namespace t6::cuda
