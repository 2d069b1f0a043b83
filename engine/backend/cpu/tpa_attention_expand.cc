// Many rows of one head: an ordinary flash attention over expanded keys and values.
#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/backend/cpu/tpa_attention_page.h"
#include "engine/backend/cpu/tpa_attention_tasks.h"

namespace t6::cpu {
namespace {

constexpr int kTileRows = 32;  // rows of one product

struct ExpandScratch {
  ExpandScratch(const AttentionShape& s, Carver& c)
      : page(c.Take<bf16>(PageNumbers(s))),
        padded(c.Take<float>(static_cast<size_t>(std::max(s.rank_k, s.rank_v)) * 64 * s.dp)),
        expanded(c.Take<float>(64 * s.dp)),
        expanded_values(c.Take<float>(64 * s.dp)),
        paired(c.Take<float>(static_cast<size_t>(RoundUp(std::max(s.rank_k, s.rank_v), 2)) * 64 * s.dp)),
        keys(c.Take<float>(64 * s.dp)),
        values(c.Take<float>(64 * s.dp)),
        query(c.Take<float>(static_cast<size_t>(kMaxBlockRows) * s.dp)),
        queries(c.Take<float>(static_cast<size_t>(kMaxBlockRows) * s.dp)),
        logits(c.Take<float>(kTileRows * 64)),
        rounded(c.Take<float>(kTileRows * 64)),
        out(c.Take<float>(static_cast<size_t>(kMaxBlockRows) * s.dp)),
        max(c.Take<float>(kMaxBlockRows)),
        sum(c.Take<float>(kMaxBlockRows)),
        visible(c.Take<int>(kTileRows)) {}

  bf16* page;
  float *padded, *expanded, *expanded_values, *paired, *keys, *values, *query, *queries, *logits, *rounded,
      *out, *max, *sum;
  int* visible;
};

// Q of one head for the task's rows, as operands.
const void* ExpandQueries(const AttentionRun& run, const ExpandTask& task, const ExpandScratch& x) {
  const AttentionShape& s = *run.shape;
  const size_t stride = static_cast<size_t>(s.n_query_vectors) * s.dp,
               qkv_elements = run.params->spec->qkv_elements();
  const float* vectors = run.queries + task.first_row * stride;
  if (s.rank_q == 0) {
    for (int i = 0; i < task.n_rows; ++i) {
      std::memcpy(x.query + static_cast<size_t>(i) * s.dp,
                  vectors + i * stride + static_cast<size_t>(task.head) * s.dp, sizeof(float) * s.dp);
    }
  } else {
    run.kernels->mix(
        {.a = run.params->qkv + task.first_row * qkv_elements + static_cast<size_t>(task.head) * s.rank_q,
         .a_stride = qkv_elements,
         .vectors = vectors,
         .vector_stride = stride,
         .rank = s.rank_q,
         .n = task.n_rows,
         .dp = s.dp,
         .out = x.query});
  }
  return run.kernels->round(x.query, static_cast<size_t>(task.n_rows) * s.dp, x.queries);
}

// One head's keys and values of a page, packed as right sides.
struct HeadPage {
  const void *keys, *values;
};

HeadPage ExpandPage(const AttentionRun& run, const ExpandTask& task, const ExpandScratch& x, int page,
                    int valid) {
  const AttentionShape& s = *run.shape;
  const AttentionKernels& k = *run.kernels;
  const PageView view = ViewPage(run, task.pages[page], task.head, task.head + 1, x.page);
  ExpandArgs keys{.a = view.ak, .rank = s.rank_k, .n_heads = s.h, .head = task.head};
  ExpandArgs values{.a = view.av, .rank = s.rank_v, .n_heads = s.h, .head = task.head};
  keys.dp = values.dp = s.dp, keys.valid = values.valid = valid;
  keys.b = PaddedRows(run, view.bk, s.rank_k, valid, x.padded);
  if (k.head_weights != nullptr) {
    k.pair_keys(keys.b, s.rank_k, s.dp, x.paired);
    k.head_keys(keys, 1, x.paired, x.keys);
    k.pair_values(PaddedRows(run, view.bv, s.rank_v, valid, x.padded), s.rank_v, s.dp, x.paired);
    k.head_values(values, 1, x.paired, x.values);
    return {x.keys, x.values};
  }
  keys.out = x.expanded, values.out = x.expanded_values;
  k.expand(keys);
  const void* packed = k.pack_float_keys(x.expanded, s.dp, x.keys);
  values.b = PaddedRows(run, view.bv, s.rank_v, valid, x.padded);
  k.expand(values);
  return {packed, k.pack_float_values(x.expanded_values, s.dp, x.values)};
}

struct RowTile {
  int row, n, n_tokens;  // the page's first tokens that some row sees, rounded up to 32
};

// Scores and softmax of a tile's rows on a page: the value product's left side [n][64].
const void* Weights(const AttentionRun& run, const ExpandScratch& x, const RowTile& tile, const void* queries,
                    const void* keys) {
  const AttentionKernels& k = *run.kernels;
  const int dp = run.shape->dp;
  const void* tile_queries = At(queries, static_cast<size_t>(tile.row) * dp, k.compute);
  float *max = x.max + tile.row, *sum = x.sum + tile.row, *out = x.out + static_cast<size_t>(tile.row) * dp;
  if (k.head_weights != nullptr) {
    k.head_weights({.queries = tile_queries,
                    .query_stride = static_cast<size_t>(dp),
                    .keys = keys,
                    .dp = dp,
                    .n = tile.n,
                    .n_tokens = tile.n_tokens,
                    .visible = x.visible,
                    .max = max,
                    .sum = sum,
                    .out = out,
                    .out_stride = static_cast<size_t>(dp),
                    .weights = x.rounded});
    return x.rounded;
  }
  k.gemm({.a = tile_queries,
          .lda = dp,
          .b = keys,
          .ldb = 64,
          .c = x.logits,
          .ldc = 64,
          .m = tile.n,
          .n = tile.n_tokens,
          .k = dp});
  k.softmax({.logits = x.logits,
             .visible = x.visible,
             .n = tile.n,
             .n_tokens = tile.n_tokens,
             .max = max,
             .sum = sum,
             .out = out,
             .dp = dp});
  return k.round(x.logits, static_cast<size_t>(tile.n) * 64, x.rounded);
}

}  // namespace

size_t ExpandScratchBytes(const AttentionShape& shape) {
  Carver carver(nullptr);
  const ExpandScratch scratch(shape, carver);
  return carver.used();
}

void RunExpandTask(const AttentionRun& run, const ExpandTask& task, uint8_t* scratch) {
  Carver carver(scratch);
  const AttentionShape& s = *run.shape;
  const ExpandScratch x(s, carver);
  const AttentionKernels& k = *run.kernels;
  const int32_t* positions = run.positions + task.first_row;
  const int last = positions[task.n_rows - 1];
  if (k.enter != nullptr) k.enter();
  const void* queries = ExpandQueries(run, task, x);
  std::memset(x.out, 0, sizeof(float) * task.n_rows * s.dp);
  std::fill_n(x.max, task.n_rows, -std::numeric_limits<float>::infinity());
  std::fill_n(x.sum, task.n_rows, 0.0f);

  for (int page = 0; page <= last / kPageTokens; ++page) {
    const int valid = Visible(last, page);
    const HeadPage head = ExpandPage(run, task, x, page, valid);
    for (int row = 0; row < task.n_rows; row += kTileRows) {
      const int m = std::min(kTileRows, task.n_rows - row);
      const int n_tokens = RoundUp(Visible(positions[row + m - 1], page), 32);
      if (n_tokens == 0) continue;
      for (int i = 0; i < m; ++i) x.visible[i] = Visible(positions[row + i], page);
      const RowTile tile{row, m, n_tokens};
      k.gemm({.a = Weights(run, x, tile, queries, head.keys),
              .lda = 64,
              .b = head.values,
              .ldb = s.dp,
              .c = x.out + static_cast<size_t>(row) * s.dp,
              .ldc = s.dp,
              .m = m,
              .n = s.dp,
              .k = n_tokens,
              .accumulate = true});
    }
  }
  k.finish(
      {.parts = x.out,
       .max = x.max,
       .sum = x.sum,
       .n_parts = 1,
       .n = task.n_rows,
       .d = s.d,
       .dp = s.dp,
       .scale = 1.0f / static_cast<float>(s.rank_v),
       .norm_weight = run.params->spec->head_norm ? run.params->head_norm_weight : nullptr,
       .norm_eps = run.params->spec->head_norm_eps,
       .out = static_cast<uint8_t*>(run.params->out) +
              (static_cast<size_t>(task.first_row) * s.h + task.head) * s.d * SizeOf(run.params->out_dtype),
       .out_dtype = run.params->out_dtype,
       .out_stride = static_cast<size_t>(s.h) * s.d});
  if (k.leave != nullptr) k.leave();
}

}  // namespace t6::cpu
