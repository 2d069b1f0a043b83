// What attention is, for each family that this engine serves: how Q, K and V come from factors
// (docs/factors.md). MHA, MQA and GQA are TPA whose head factors do not depend on the token, so one spec
// covers them all. What does not depend on the token is not cached.
#pragma once

#include <cstdint>

#include "engine/base/page_tokens.h"

namespace t6 {

enum class HeadFactor : uint8_t {
  kContextual,  // A [h, R] per token
  kConstant,    // A [h, R] learned, the same for every token
  kOneHot,      // rank r belongs to head group r alone (GQA, MQA, MHA)
};

enum class DimFactor : uint8_t { kContextual, kConstant };

struct FactorSpec {
  int rank = 0;
  HeadFactor a = HeadFactor::kContextual;
  DimFactor b = DimFactor::kContextual;
};

struct AttentionSpec {
  int n_heads = 0;   // h
  int head_dim = 0;  // d
  FactorSpec q, k, v;
  bool full_query = false;  // kvonly: q is [h, d], not factored; q.rank is then 0
  int rotary_dim = 0;       // numbers of B_Q and B_K that are rotated; d, or less in partial variants
  bool head_norm = false;   // subln: weighted RMSNorm over d of every head's output
  float head_norm_eps = 1e-5f;

  // The scale on Q.K: 1/sqrt(d), with the means over ranks folded in.
  float logit_scale() const;
  // Elements of one token's projections, in the order A_Q B_Q A_K B_K A_V B_V (a full query is its h*d
  // numbers).
  int q_elements() const { return full_query ? n_heads * head_dim : q.rank * (n_heads + head_dim); }
  int k_elements() const { return k.rank * (n_heads + head_dim); }
  int v_elements() const { return v.rank * (n_heads + head_dim); }
  int qkv_elements() const { return q_elements() + k_elements() + v_elements(); }
};

}  // namespace t6
