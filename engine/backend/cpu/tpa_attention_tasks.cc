// Operations per page of 64 tokens, in multiply-adds (the shipped model: h 13, d 64, ranks 6, 2, 2):
//   from factors, one row: 64 (R_K + R_V) h d = 213k. With the query left factored, scores take 64 R_K R_Q (d
//   + h)
//     = 59k instead of 106k. The exponentials, 64 h = 832, are small beside them.
//   expanded, one head: 64 (R_K + R_V) d = 16k to expand, once for the whole block of rows, then 128 d = 8k a
//   row.
// A row of 13 heads thus costs 106k expanded against 166k to 213k from factors, and expanding pays from about
// a dozen rows on: kExpandRows.
#include "engine/backend/cpu/tpa_attention_tasks.h"

#include <algorithm>

#include "engine/backend/cpu/tpa_attention_page.h"
#include "engine/backend/cpu/tpa_attention_store.h"

namespace t6::cpu {
namespace {

constexpr int kHeadRows = 5;
constexpr size_t kHeadPagesBytes = size_t{320} << 10;  // of prepared keys and values: a third of a cache

}  // namespace

AttentionShape::AttentionShape(const AttentionSpec& spec)
    : h(spec.n_heads),
      d(spec.head_dim),
      dp(RoundUp(spec.head_dim, 32)),
      rank_q(spec.full_query ? 0 : spec.q.rank),
      rank_k(spec.k.rank),
      rank_v(spec.v.rank),
      n_query_vectors(spec.full_query ? spec.n_heads : spec.q.rank),
      block_rows(std::max(1, 2 * kRowGroup / h)),
      block_m(RoundUp(block_rows * std::max(h, n_query_vectors), kRowGroup)),
      max_task_rows(std::clamp(65536 / (h * dp), 1, 32)),
      store_floats(StoreScratchFloats(spec)),
      slot_floats(static_cast<size_t>(h) * dp + 2 * RoundUp(h, 16)) {
  const size_t ranks = RoundUp(rank_k, 2) + RoundUp(rank_v, 2), page = ranks * 64 * dp * sizeof(bf16);
  max_head_pages = static_cast<int>(std::clamp<size_t>(kHeadPagesBytes / page, kSplitPages, kMostHeadPages));
  scratch_bytes = std::max({FactorScratchBytes(*this), HeadScratchBytes(*this), ExpandScratchBytes(*this)});
}

int HeadRowsOf(const AttentionKernels& kernels, const AttentionShape& shape) {
  return kernels.head_weights != nullptr && shape.rank_v > 1 ? kHeadRows : 0;
}

void RotateQueries(const AttentionRun& run, int row, float* queries) {
  const AttentionShape& s = *run.shape;
  const AttentionSpec& spec = *run.params->spec;
  const int half = spec.rotary_dim / 2, a_q = s.h * s.rank_q;
  run.kernels->rotate({.in = run.params->qkv + static_cast<size_t>(row) * spec.qkv_elements() + a_q,
                       .n = s.n_query_vectors,
                       .d = s.d,
                       .dp = s.dp,
                       .half = half,
                       .cos = run.params->cos + static_cast<size_t>(run.positions[row]) * half,
                       .sin = run.params->sin + static_cast<size_t>(run.positions[row]) * half,
                       .scale = static_cast<float>(spec.logit_scale() * 1.4426950408889634),
                       .out = queries});
}

const float* MixQueries(const AttentionRun& run, int row, const float* queries, float* mixed) {
  const AttentionShape& s = *run.shape;
  if (s.rank_q == 0) return queries;
  run.kernels->gemm_f32({.a = run.params->qkv + static_cast<size_t>(row) * run.params->spec->qkv_elements(),
                         .lda = s.rank_q,
                         .b = queries,
                         .ldb = s.dp,
                         .c = mixed,
                         .ldc = s.dp,
                         .m = s.h,
                         .n = s.dp,
                         .k = s.rank_q});
  return mixed;
}

void FinishRow(const AttentionRun& run, int row) {
  const AttentionShape& s = *run.shape;
  float* slot = run.slots + run.plan->slot(row) * s.slot_floats;
  run.kernels->finish({.parts = slot,
                       .part_stride = s.slot_floats,
                       .max = slot + static_cast<size_t>(s.h) * s.dp,
                       .sum = slot + static_cast<size_t>(s.h) * s.dp + s.h,
                       .stat_stride = s.slot_floats,
                       .n_parts = run.plan->n_parts(row),
                       .n = s.h,
                       .d = s.d,
                       .dp = s.dp,
                       .scale = 1.0f / static_cast<float>(s.rank_v),
                       .norm_weight = run.params->spec->head_norm ? run.params->head_norm_weight : nullptr,
                       .norm_eps = run.params->spec->head_norm_eps,
                       .out = static_cast<uint8_t*>(run.params->out) +
                              static_cast<size_t>(row) * s.h * s.d * SizeOf(run.params->out_dtype),
                       .out_dtype = run.params->out_dtype,
                       .out_stride = static_cast<size_t>(s.d)});
}

}  // namespace t6::cpu
