// Operations per page of 64 tokens, in multiply-adds (the shipped model: h 13, d 64, ranks 6, 2, 2):
//   from factors, one row:  64 (R_K + R_V) h d = 213k, or for scores with the query left factored (AVX-512,
//   no matrix
//     unit) 64 R_K (R_Q d + R_Q h) = 59k instead of 106k; the exponentials, 64 h = 832, are small beside
//     them.
//   expanded, one head:     64 (R_K + R_V) d = 16k to expand, once for the whole block of rows, then 128 d =
//   8k a row.
// A row of 13 heads thus costs 13 * 8k = 106k expanded against 166k to 213k factored, and expanding pays from
// about a dozen rows on: the bound is kExpandRows.
#include "engine/backend/cpu/tpa_attention_tasks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/base/check.h"

namespace t6::cpu {
namespace {

constexpr int kTileRows = 32;  // rows of one product in an expanded task

int RoundUp(int x, int step) { return (x + step - 1) / step * step; }

// Hands out pieces of a worker's scratch, in the same order as AttentionShape counts them.
class Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}
  template <typename T>
  T* Take(size_t n) {
    uint8_t* p = base_ + used_;
    used_ += (n * sizeof(T) + 127) / 128 * 128;
    return reinterpret_cast<T*>(p);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

struct FactorScratch {
  FactorScratch(const AttentionShape& s, Carver& c)
      : padded(c.Take<float>(64 * s.dp)),
        padded_values(c.Take<float>(static_cast<size_t>(s.rank_v) * 64 * s.dp)),
        keys(c.Take<float>(static_cast<size_t>(s.rank_k) * 64 * s.dp)),
        values(c.Take<float>(static_cast<size_t>(s.rank_v) * 64 * s.dp)),
        query(c.Take<float>(static_cast<size_t>(s.block_m) * s.dp)),
        queries(c.Take<float>(static_cast<size_t>(s.max_blocks()) * s.block_m * s.dp)),
        products(c.Take<float>(static_cast<size_t>(s.rank_k) * s.block_m * 64)),
        logits(c.Take<float>(static_cast<size_t>(s.block_m) * 64)),
        weights(c.Take<float>(static_cast<size_t>(s.block_m) * s.rank_v * 64)),
        rounded(c.Take<float>(static_cast<size_t>(s.block_m) * s.rank_v * 64)),
        out(c.Take<float>(static_cast<size_t>(s.max_blocks()) * s.block_m * s.dp)),
        max(c.Take<float>(static_cast<size_t>(s.max_blocks()) * s.block_m)),
        sum(c.Take<float>(static_cast<size_t>(s.max_blocks()) * s.block_m)),
        visible(c.Take<int>(s.block_m)) {}

  float *padded, *padded_values, *keys, *values, *query, *queries, *products, *logits, *weights, *rounded,
      *out, *max, *sum;
  int* visible;
};

struct ExpandScratch {
  ExpandScratch(const AttentionShape& s, Carver& c)
      : padded(c.Take<float>(static_cast<size_t>(std::max(s.rank_k, s.rank_v)) * 64 * s.dp)),
        expanded(c.Take<float>(64 * s.dp)),
        expanded_values(c.Take<float>(64 * s.dp)),
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

  float *padded, *expanded, *expanded_values, *keys, *values, *query, *queries, *logits, *rounded, *out, *max,
      *sum;
  int* visible;
};

// One page's parts.
struct PageView {
  PageView(const LayerPages& pages, int32_t id) {
    T6_DCHECK(id >= 0 && id < pages.n_pages, "page {} of {}", id, pages.n_pages);
    const uint8_t* base = pages.base + static_cast<size_t>(id) * pages.layout->page_bytes();
    bk = base + pages.layout->part(PartName::kBK).offset,
    ak = base + pages.layout->part(PartName::kAK).offset;
    bv = base + pages.layout->part(PartName::kBV).offset,
    av = base + pages.layout->part(PartName::kAV).offset;
  }
  const uint8_t *bk, *ak, *bv, *av;
};

// Rows [n_ranks][64][d] of a page as [n_ranks][64][dp] with zeros from `valid` on: a copy only where they are
// not so yet.
const void* PaddedRows(const AttentionRun& run, const uint8_t* rows, int n_ranks, int valid, void* buffer) {
  const int d = run.shape->d, dp = run.shape->dp;
  if (valid == 64 && d == dp) return rows;
  const size_t element = SizeOf(run.kernels->page);
  auto* out = static_cast<uint8_t*>(buffer);
  for (int r = 0; r < n_ranks; ++r) {
    for (int t = 0; t < 64; ++t, out += dp * element) {
      const size_t bytes = t < valid ? d * element : 0;
      if (bytes != 0) std::memcpy(out, rows + (static_cast<size_t>(r) * 64 + t) * d * element, bytes);
      std::memset(out + bytes, 0, dp * element - bytes);
    }
  }
  return buffer;
}

int Visible(int position, int page) { return std::clamp(position + 1 - page * kPageTokens, 0, kPageTokens); }

const uint8_t* At(const void* operand, size_t index, DType type) {
  return static_cast<const uint8_t*>(operand) + index * SizeOf(type);
}

// Asks for the next page in pieces between the operations on this one, so that memory works while the core
// does.
class NextPage {
 public:
  NextPage() = default;
  NextPage(const uint8_t* begin, size_t bytes, int pieces)
      : at_(begin), end_(begin + bytes), piece_((bytes / pieces + 63) / 64 * 64) {}
  void FetchPiece() {
    for (const uint8_t* stop = at_ + std::min<size_t>(piece_, end_ - at_); at_ < stop; at_ += 64) {
      __builtin_prefetch(at_, 0, 2);
    }
  }

 private:
  const uint8_t *at_ = nullptr, *end_ = nullptr;
  size_t piece_ = 0;
};

// What a factor task keeps from page to page.
class FactorPass {
 public:
  FactorPass(const AttentionRun& run, const FactorTask& task, const FactorScratch& scratch)
      : run_(run),
        s_(*run.shape),
        task_(task),
        x_(scratch),
        n_blocks_((task.n_rows + s_.block_rows - 1) / s_.block_rows) {
    // Scores by P = B_Q B_K^T and then A_Q P cost R_Q (d' + h) a rank and token against h d', where d' counts
    // the multiply-adds that the product's instructions do at once.
    const int width = run.kernels->compute == DType::kBF16 ? s_.d / 2 : s_.d;
    factored_ = s_.rank_q > 0 && !run.kernels->cheap_products && s_.rank_q * (width + s_.h) < s_.h * width;
  }

  void Begin() {
    for (int block = 0; block < n_blocks_; ++block) FormQueries(block);
    const size_t n = static_cast<size_t>(n_blocks_) * s_.block_m;
    if (task_.resume)
      return ForEachRow([&](int row, float* out, float* max, float* sum) {
        const float* slot = Slot(row);
        std::memcpy(out, slot, sizeof(float) * s_.h * s_.dp);
        std::memcpy(max, slot + static_cast<size_t>(s_.h) * s_.dp, sizeof(float) * s_.h);
        std::memcpy(sum, slot + static_cast<size_t>(s_.h) * s_.dp + s_.h, sizeof(float) * s_.h);
      });
    std::memset(x_.out, 0, n * s_.dp * sizeof(float));
    std::fill_n(x_.max, n, -std::numeric_limits<float>::infinity());
    std::fill_n(x_.sum, n, 0.0f);
  }

  void Page(int page) {
    const PageView view(run_.params->pages, task_.pages[page]);
    // The task's last row sees the most; what lies beyond is not read.
    const int valid = Visible(run_.positions[task_.first_row + task_.n_rows - 1], page);
    next_ = {};
    if (page + 1 < task_.page_end) {
      const size_t bytes = run_.params->pages.layout->page_bytes();
      const int pieces = 2 * (s_.rank_k + s_.rank_v) + 3;  // one an operation, of the first block
      next_ = NextPage(run_.params->pages.base + task_.pages[page + 1] * bytes, bytes, pieces);
    }
    // Packed once for all blocks; a single block packs each rank just before its product, in the same buffer.
    if (n_blocks_ > 1) {
      for (int r = 0; r < s_.rank_k; ++r) keys_[r] = PackKeys(view, r, valid);
      for (int u = 0; u < s_.rank_v; ++u) values_[u] = PackValues(view, u, valid);
    }
    for (int block = 0; block < n_blocks_; ++block) Block(block, page, view, valid);
  }

  void End() {
    ForEachRow([&](int row, float* out, float* max, float* sum) {
      float* slot = Slot(row);
      std::memcpy(slot, out, sizeof(float) * s_.h * s_.dp);
      std::memcpy(slot + static_cast<size_t>(s_.h) * s_.dp, max, sizeof(float) * s_.h);
      std::memcpy(slot + static_cast<size_t>(s_.h) * s_.dp + s_.h, sum, sizeof(float) * s_.h);
    });
  }

 private:
  static constexpr int kMaxRank = 64;

  float* Piece(float* buffer, int rank) const {
    return buffer + (n_blocks_ > 1 ? static_cast<size_t>(rank) * 64 * s_.dp : 0);
  }
  const void* PackKeys(const PageView& view, int r, int valid) {
    next_.FetchPiece();
    const size_t offset = static_cast<size_t>(r) * 64 * s_.d * SizeOf(run_.kernels->page);
    const void* rows = PaddedRows(run_, view.bk + offset, 1, valid, x_.padded);
    return run_.kernels->pack_keys(rows, s_.dp, Piece(x_.keys, r));
  }
  const void* ValueRows(const PageView& view, int u, int valid) {
    const size_t offset = static_cast<size_t>(u) * 64 * s_.d * SizeOf(run_.kernels->page);
    return PaddedRows(run_, view.bv + offset, 1, valid, Piece(x_.padded_values, u));
  }
  const void* PackValues(const PageView& view, int u, int valid) {
    next_.FetchPiece();
    return run_.kernels->pack_values(ValueRows(view, u, valid), s_.dp, Piece(x_.values, u));
  }

  int FirstRow(int block) const { return task_.first_row + block * s_.block_rows; }
  int RowsIn(int block) const { return std::min(s_.block_rows, task_.n_rows - block * s_.block_rows); }
  float* Slot(int row) const { return run_.slots + (run_.plan->slot(row) + task_.split) * s_.slot_floats; }

  template <typename F>
  void ForEachRow(const F& f) {
    for (int i = 0; i < task_.n_rows; ++i) {
      const size_t entry = static_cast<size_t>(i / s_.block_rows) * s_.block_m + i % s_.block_rows * s_.h;
      f(task_.first_row + i, x_.out + entry * s_.dp, x_.max + entry, x_.sum + entry);
    }
  }

  // The left side of the block's score product, as operands: B_Q as it is, or Q = A_Q B_Q.
  void FormQueries(int block) {
    const AttentionKernels& k = *run_.kernels;
    const int n_rows = RowsIn(block), vectors = s_.n_query_vectors;
    const float* in = run_.queries + static_cast<size_t>(FirstRow(block)) * vectors * s_.dp;
    size_t n = static_cast<size_t>(n_rows) * vectors * s_.dp;
    if (s_.rank_q > 0 && !factored_) {
      for (int i = 0; i < n_rows; ++i) {
        k.gemm_f32({.a = run_.params->qkv +
                         static_cast<size_t>(FirstRow(block) + i) * run_.params->spec->qkv_elements(),
                    .lda = s_.rank_q,
                    .b = in + static_cast<size_t>(i) * vectors * s_.dp,
                    .ldb = s_.dp,
                    .c = x_.query + static_cast<size_t>(i) * s_.h * s_.dp,
                    .ldc = s_.dp,
                    .m = s_.h,
                    .n = s_.dp,
                    .k = s_.rank_q});
      }
      in = x_.query, n = static_cast<size_t>(n_rows) * s_.h * s_.dp;
    }
    auto* out = x_.queries + static_cast<size_t>(block) * s_.block_m * s_.dp;
    if (const void* rounded = k.round(in, n, out); rounded != out)
      std::memcpy(out, rounded, n * sizeof(float));
  }

  void Block(int block, int page, const PageView& view, int valid) {
    const AttentionKernels& k = *run_.kernels;
    const int first = FirstRow(block), n_rows = RowsIn(block), n = n_rows * s_.h;
    for (int i = 0; i < n; ++i) x_.visible[i] = Visible(run_.positions[first + i / s_.h], page);
    if (x_.visible[n - 1] == 0) return;
    for (int r = 0; r < s_.rank_k; ++r) {
      next_.FetchPiece();
      k.gemm({.a = x_.queries + static_cast<size_t>(block) * s_.block_m * s_.dp,
              .lda = s_.dp,
              .b = n_blocks_ > 1 ? keys_[r] : PackKeys(view, r, valid),
              .ldb = 64,
              .c = x_.products + static_cast<size_t>(r) * s_.block_m * 64,
              .ldc = 64,
              .m = factored_ ? n_rows * s_.rank_q : n,
              .n = 64,
              .k = s_.dp});
    }
    const size_t qkv_elements = run_.params->spec->qkv_elements();
    next_.FetchPiece();
    k.score({.ak = view.ak,
             .rank_k = s_.rank_k,
             .n_heads = s_.h,
             .n_rows = n_rows,
             .products = x_.products,
             .product_rows = s_.block_m,
             .aq = factored_ ? run_.params->qkv + first * qkv_elements : nullptr,
             .aq_stride = qkv_elements,
             .rank_q = s_.rank_q,
             .logits = x_.logits});
    const size_t entry = static_cast<size_t>(block) * s_.block_m;
    next_.FetchPiece();
    k.softmax({.logits = x_.logits,
               .visible = x_.visible,
               .n = n,
               .n_tokens = 64,
               .max = x_.max + entry,
               .sum = x_.sum + entry,
               .out = x_.out + entry * s_.dp,
               .dp = s_.dp});
    next_.FetchPiece();
    k.weigh({.p = x_.logits,
             .visible = x_.visible,
             .n = n,
             .av = view.av,
             .rank_v = s_.rank_v,
             .n_heads = s_.h,
             .weights = x_.weights});
    const void* weights = k.round(x_.weights, static_cast<size_t>(n) * s_.rank_v * 64, x_.rounded);
    for (int u = 0; u < s_.rank_v; ++u) {
      next_.FetchPiece();
      const bool plain = n_blocks_ == 1 && k.gemm_rows != nullptr;
      (plain ? k.gemm_rows : k.gemm)({.a = At(weights, u * 64, k.compute),
                                      .lda = s_.rank_v * 64,
                                      .b = plain           ? ValueRows(view, u, valid)
                                           : n_blocks_ > 1 ? values_[u]
                                                           : PackValues(view, u, valid),
                                      .ldb = s_.dp,
                                      .c = x_.out + entry * s_.dp,
                                      .ldc = s_.dp,
                                      .m = n,
                                      .n = s_.dp,
                                      .k = 64,
                                      .accumulate = true});
    }
  }

  const AttentionRun& run_;
  const AttentionShape& s_;
  const FactorTask& task_;
  const FactorScratch& x_;
  const int n_blocks_;
  NextPage next_;
  const void* keys_[kMaxRank];
  const void* values_[kMaxRank];
  bool factored_ = false;
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
      slot_floats(static_cast<size_t>(h) * dp + 2 * RoundUp(h, 16)) {
  Carver factor(nullptr), expand(nullptr);
  FactorScratch factor_scratch(*this, factor);
  ExpandScratch expand_scratch(*this, expand);
  scratch_bytes = std::max(factor.used(), expand.used());
}

void RotateQueries(const AttentionRun& run, int begin, int end, float* queries) {
  const AttentionShape& s = *run.shape;
  const AttentionSpec& spec = *run.params->spec;
  const int half = spec.rotary_dim / 2, a_q = s.h * s.rank_q;
  const auto scale = static_cast<float>(spec.logit_scale() * 1.4426950408889634);
  for (int row = begin; row < end; ++row) {
    const float* in = run.params->qkv + static_cast<size_t>(row) * spec.qkv_elements() + a_q;
    run.kernels->rotate({.in = in,
                         .n = s.n_query_vectors,
                         .d = s.d,
                         .dp = s.dp,
                         .half = half,
                         .cos = run.params->cos + static_cast<size_t>(run.positions[row]) * half,
                         .sin = run.params->sin + static_cast<size_t>(run.positions[row]) * half,
                         .scale = scale,
                         .out = queries + static_cast<size_t>(row) * s.n_query_vectors * s.dp});
  }
}

void RunFactorTask(const AttentionRun& run, const FactorTask& task, uint8_t* scratch) {
  Carver carver(scratch);
  const FactorScratch x(*run.shape, carver);
  FactorPass pass(run, task, x);
  if (run.kernels->enter != nullptr) run.kernels->enter();
  pass.Begin();
  for (int page = task.page_begin; page < task.page_end; ++page) pass.Page(page);
  pass.End();
  if (run.kernels->leave != nullptr) run.kernels->leave();
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
    const PageView view(run.params->pages, task.pages[page]);
    const int valid = Visible(last, page);
    k.expand({.a = view.ak,
              .b = PaddedRows(run, view.bk, s.rank_k, valid, x.padded),
              .rank = s.rank_k,
              .n_heads = s.h,
              .head = task.head,
              .dp = s.dp,
              .valid = valid,
              .out = x.expanded});
    const void* keys = k.pack_float_keys(x.expanded, s.dp, x.keys);
    k.expand({.a = view.av,
              .b = PaddedRows(run, view.bv, s.rank_v, valid, x.padded),
              .rank = s.rank_v,
              .n_heads = s.h,
              .head = task.head,
              .dp = s.dp,
              .valid = valid,
              .out = x.expanded_values});
    const void* values = k.pack_float_values(x.expanded_values, s.dp, x.values);
    for (int row = 0; row < task.n_rows; row += kTileRows) {
      const int m = std::min(kTileRows, task.n_rows - row);
      const int n_tokens = RoundUp(Visible(positions[row + m - 1], page), 32);
      if (n_tokens == 0) continue;
      for (int i = 0; i < m; ++i) x.visible[i] = Visible(positions[row + i], page);
      k.gemm({.a = At(queries, static_cast<size_t>(row) * s.dp, k.compute),
              .lda = s.dp,
              .b = keys,
              .ldb = 64,
              .c = x.logits,
              .ldc = 64,
              .m = m,
              .n = n_tokens,
              .k = s.dp});
      k.softmax({.logits = x.logits,
                 .visible = x.visible,
                 .n = m,
                 .n_tokens = n_tokens,
                 .max = x.max + row,
                 .sum = x.sum + row,
                 .out = x.out + static_cast<size_t>(row) * s.dp,
                 .dp = s.dp});
      k.gemm({.a = k.round(x.logits, static_cast<size_t>(m) * 64, x.rounded),
              .lda = 64,
              .b = values,
              .ldb = s.dp,
              .c = x.out + static_cast<size_t>(row) * s.dp,
              .ldc = s.dp,
              .m = m,
              .n = s.dp,
              .k = n_tokens,
              .accumulate = true});
    }
  }
  k.finish({.parts = x.out,
            .max = x.max,
            .sum = x.sum,
            .n_parts = 1,
            .n = task.n_rows,
            .d = s.d,
            .dp = s.dp,
            .scale = 1.0f / static_cast<float>(s.rank_v),
            .norm_weight = run.params->spec->head_norm ? run.params->head_norm_weight : nullptr,
            .norm_eps = run.params->spec->head_norm_eps,
            .out = run.params->out + (static_cast<size_t>(task.first_row) * s.h + task.head) * s.d,
            .out_stride = static_cast<size_t>(s.h) * s.d});
  if (k.leave != nullptr) k.leave();
}

void FinishRow(const AttentionRun& run, int row) {
  const AttentionShape& s = *run.shape;
  float* slot = run.slots + run.plan->slot(row) * s.slot_floats;
  run.kernels->finish({.parts = slot,
                       .part_stride = s.slot_floats,
                       .max = slot + static_cast<size_t>(s.h) * s.dp,
                       .sum = slot + static_cast<size_t>(s.h) * s.dp + s.h,
                       .stat_stride = s.slot_floats,
                       .n_parts = run.plan->n_splits(row),
                       .n = s.h,
                       .d = s.d,
                       .dp = s.dp,
                       .scale = 1.0f / static_cast<float>(s.rank_v),
                       .norm_weight = run.params->spec->head_norm ? run.params->head_norm_weight : nullptr,
                       .norm_eps = run.params->spec->head_norm_eps,
                       .out = run.params->out + static_cast<size_t>(row) * s.h * s.d,
                       .out_stride = static_cast<size_t>(s.d)});
}

}  // namespace t6::cpu
