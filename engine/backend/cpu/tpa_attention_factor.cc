// A few rows straight from factors.
#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/backend/cpu/tpa_attention_page.h"
#include "engine/backend/cpu/tpa_attention_tasks.h"

namespace t6::cpu {
namespace {

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
    if (const int next = page + 1 < task_.page_end ? page + 1 : task_.fetch; next >= 0) {
      const size_t bytes = run_.params->pages.layout->page_bytes();
      const int pieces = 2 * (s_.rank_k + s_.rank_v) + 3;  // one an operation, of the first block
      next_ = NextPage(run_.params->pages.base + task_.pages[next] * bytes, bytes, pieces);
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
  const void* keys_[kMaxFactorRank];
  const void* values_[kMaxFactorRank];
  bool factored_ = false;
};

}  // namespace

size_t FactorScratchBytes(const AttentionShape& shape) {
  Carver carver(nullptr);
  const FactorScratch scratch(shape, carver);
  return carver.used();
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

}  // namespace t6::cpu
