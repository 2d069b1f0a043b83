// A few rows straight from factors.
#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/backend/cpu/tpa_attention_page.h"
#include "engine/backend/cpu/tpa_attention_store.h"
#include "engine/backend/cpu/tpa_attention_tasks.h"

namespace t6::cpu {
namespace {

struct FactorScratch {
  FactorScratch(const AttentionShape& s, Carver& c)
      : page(c.Take<bf16>(PageNumbers(s))),
        padded(c.Take<float>(64 * s.dp)),
        padded_values(c.Take<float>(static_cast<size_t>(s.rank_v) * 64 * s.dp)),
        keys(c.Take<float>(static_cast<size_t>(s.rank_k) * 64 * s.dp)),
        values(c.Take<float>(static_cast<size_t>(s.rank_v) * 64 * s.dp)),
        rotated(c.Take<float>(static_cast<size_t>(s.block_m) * s.dp)),
        query(c.Take<float>(static_cast<size_t>(s.block_m) * s.dp)),
        queries(c.Take<float>(static_cast<size_t>(s.max_blocks()) * s.block_m * s.dp)),
        products(c.Take<float>(static_cast<size_t>(s.rank_k) * s.block_m * 64)),
        logits(c.Take<float>(static_cast<size_t>(s.block_m) * 64)),
        weights(c.Take<float>(static_cast<size_t>(s.block_m) * s.rank_v * 64)),
        rounded(c.Take<float>(static_cast<size_t>(s.block_m) * s.rank_v * 64)),
        out(c.Take<float>(static_cast<size_t>(s.max_blocks()) * s.block_m * s.dp)),
        max(c.Take<float>(static_cast<size_t>(s.max_blocks()) * s.block_m)),
        sum(c.Take<float>(static_cast<size_t>(s.max_blocks()) * s.block_m)),
        store(c.Take<float>(s.store_floats)),
        visible(c.Take<int>(s.block_m)) {}

  bf16* page;
  float *padded, *padded_values, *keys, *values, *rotated, *query, *queries, *products, *logits, *weights,
      *rounded, *out, *max, *sum, *store;
  int* visible;
};

// What a factor task keeps from page to page.
class FactorPass {
 public:
  FactorPass(const AttentionRun& run, const FactorTask& task, const FactorScratch& scratch,
             WorkerState* worker)
      : run_(run),
        s_(*run.shape),
        task_(task),
        x_(scratch),
        worker_(worker),
        n_blocks_((task.n_rows + s_.block_rows - 1) / s_.block_rows) {
    // Scores by P = B_Q B_K^T and then A_Q P cost R_Q (d' + h) a rank and token against h d', where d' counts
    // the multiply-adds that the product's instructions do at once.
    const int width = run.kernels->compute == DType::kBF16 ? s_.d / 2 : s_.d;
    // A matrix unit writes whole groups of rows, so that blocks must not touch.
    block_entries_ = run.kernels->cheap_products ? s_.block_m : s_.block_rows * s_.h;
    factored_ = s_.rank_q > 0 && !run.kernels->cheap_products && s_.rank_q * (width + s_.h) < s_.h * width;
  }

  void Begin() {
    FormAllQueries();
    ForEachRow([&](float* slot, float* out, float* max, float* sum) {
      if (task_.resume) return Copy(slot, slot + s_.h * s_.dp, slot + s_.h * s_.dp + s_.h, out, max, sum);
      std::memset(out, 0, sizeof(float) * s_.h * s_.dp);
      std::fill_n(max, s_.h, -std::numeric_limits<float>::infinity());
      std::fill_n(sum, s_.h, 0.0f);
    });
  }

  void Page(int page) {
    const PageView view = ViewPage(run_, task_.pages[page], 0, s_.h, x_.page);
    // The task's last row sees the most; what lies beyond is not read.
    const int valid = Visible(run_.positions[task_.first_row + task_.n_rows - 1], page);
    next_ = {};
    if (const int32_t next = page + 1 < task_.page_end ? task_.pages[page + 1] : task_.next_page; next >= 0) {
      const size_t bytes = run_.params->pages.layout->page_bytes();
      next_.at = run_.params->pages.base + next * bytes;
      next_.end = next_.at + bytes;
    }
    // Packed once for all blocks; a single block packs each rank just before its product, in the same buffer.
    if (n_blocks_ > 1) {
      for (int r = 0; r < s_.rank_k; ++r) keys_[r] = PackKeys(view, r, valid, kPageTokens);
      for (int u = 0; u < s_.rank_v; ++u) values_[u] = PackValues(view, u, valid);
    }
    for (int block = 0; block < n_blocks_; ++block) Block(block, page, view, valid);
  }

  void End() {
    ForEachRow([&](float* slot, float* out, float* max, float* sum) {
      Copy(out, max, sum, slot, slot + s_.h * s_.dp, slot + s_.h * s_.dp + s_.h);
    });
  }

 private:
  float* Piece(float* buffer, int rank) const {
    return buffer + (n_blocks_ > 1 ? static_cast<size_t>(rank) * 64 * s_.dp : 0);
  }
  // For kernels that do not mind `fetch`: a piece of the next page between two of them.
  void FetchPiece() {
    if (run_.kernels->fetches) return;
    const int pieces = 2 * (s_.rank_k + s_.rank_v) + 3;  // one an operation, of the first block
    const int lines = static_cast<int>(run_.params->pages.layout->page_bytes() / 64) / pieces + 1;
    for (int i = 0; i < lines && next_.at < next_.end; ++i) next_.Lines<1>();
  }
  // What a key that nobody sees gives is never used, whatever it holds.
  const void* PackKeys(const PageView& view, int r, int valid, int n_tokens) {
    FetchPiece();
    const uint8_t* rows = view.bk + static_cast<size_t>(r) * 64 * s_.d * SizeOf(run_.kernels->page);
    return run_.kernels->pack_keys(s_.d == s_.dp ? rows : PaddedRows(run_, rows, 1, valid, x_.padded), s_.dp,
                                   n_tokens, Piece(x_.keys, r));
  }
  const void* ValueRows(const PageView& view, int u, int valid) {
    const size_t offset = static_cast<size_t>(u) * 64 * s_.d * SizeOf(run_.kernels->page);
    return PaddedRows(run_, view.bv + offset, 1, valid, Piece(x_.padded_values, u));
  }
  const void* PackValues(const PageView& view, int u, int valid) {
    FetchPiece();
    return run_.kernels->pack_values(ValueRows(view, u, valid), s_.dp, Piece(x_.values, u));
  }

  int FirstRow(int block) const { return task_.first_row + block * s_.block_rows; }
  int RowsIn(int block) const { return std::min(s_.block_rows, task_.n_rows - block * s_.block_rows); }
  float* Slot(int row) const { return run_.slots + (run_.plan->slot(row) + task_.part) * s_.slot_floats; }

  void Copy(const float* out, const float* max, const float* sum, float* to_out, float* to_max,
            float* to_sum) const {
    std::memcpy(to_out, out, sizeof(float) * s_.h * s_.dp);
    std::memcpy(to_max, max, sizeof(float) * s_.h);
    std::memcpy(to_sum, sum, sizeof(float) * s_.h);
  }

  // f(slot, out, max, sum) of each row.
  template <typename F>
  void ForEachRow(const F& f) {
    for (int i = 0; i < task_.n_rows; ++i) {
      const size_t entry = static_cast<size_t>(i / s_.block_rows) * block_entries_ + i % s_.block_rows * s_.h;
      f(Slot(task_.first_row + i), x_.out + entry * s_.dp, x_.max + entry, x_.sum + entry);
    }
  }

  // A worker's tasks often have the same rows.
  void FormAllQueries() {
    const WorkerState::Rows now{run_.serial, task_.first_row, task_.n_rows};
    if (worker_->formed == now) return;
    worker_->formed = now;
    for (int block = 0; block < n_blocks_; ++block)
      FormQueries(FirstRow(block), RowsIn(block), static_cast<size_t>(block) * s_.block_m * s_.dp);
  }

  // The left side of some rows' score product, as operands: B_Q as it is, or Q = A_Q B_Q.
  void FormQueries(int first, int n_rows, size_t at) {
    const size_t vectors = static_cast<size_t>(s_.n_query_vectors) * s_.dp, mixed = s_.h * s_.dp;
    const bool mixes = s_.rank_q > 0 && !factored_;
    for (int i = 0; i < n_rows; ++i) {
      RotateQueries(run_, first + i, x_.rotated + i * vectors);
      if (mixes) MixQueries(run_, first + i, x_.rotated + i * vectors, x_.query + i * mixed);
    }
    const float* in = mixes ? x_.query : x_.rotated;
    const size_t n = n_rows * (mixes ? mixed : vectors);
    auto* out = Queries(at);
    if (const void* rounded = run_.kernels->round(in, n, out); rounded != out)
      std::memcpy(out, rounded, n * sizeof(float));
  }
  uint8_t* Queries(size_t at) const {
    return reinterpret_cast<uint8_t*>(x_.queries) + at * SizeOf(run_.kernels->compute);
  }

  void Block(int block, int page, const PageView& view, int valid) {
    const AttentionKernels& k = *run_.kernels;
    const int first = FirstRow(block), n_rows = RowsIn(block), n = n_rows * s_.h;
    for (int i = 0; i < n_rows; ++i)
      std::fill_n(x_.visible + i * s_.h, s_.h, Visible(run_.positions[first + i], page));
    if (x_.visible[n - 1] == 0) return;
    const int n_tokens = RoundUp(x_.visible[n - 1], 32);
    for (int r = 0; r < s_.rank_k; ++r) {
      FetchPiece();
      k.gemm({.a = Queries(static_cast<size_t>(block) * s_.block_m * s_.dp),
              .lda = s_.dp,
              .b = n_blocks_ > 1 ? keys_[r] : PackKeys(view, r, valid, n_tokens),
              .ldb = 64,
              .c = x_.products + static_cast<size_t>(r) * s_.block_m * 64,
              .ldc = 64,
              .m = factored_ ? n_rows * s_.rank_q : n,
              .n = n_tokens,
              .k = s_.dp,
              .fetch = &next_});
    }
    const size_t qkv_elements = run_.params->spec->qkv_elements();
    FetchPiece();
    k.score({.ak = view.ak,
             .rank_k = s_.rank_k,
             .n_heads = s_.h,
             .n_rows = n_rows,
             .products = x_.products,
             .product_rows = s_.block_m,
             .aq = factored_ ? run_.params->qkv + first * qkv_elements : nullptr,
             .aq_stride = qkv_elements,
             .rank_q = s_.rank_q,
             .n_tokens = n_tokens,
             .logits = x_.logits,
             .fetch = &next_});
    const size_t entry = static_cast<size_t>(block) * block_entries_;
    FetchPiece();
    const SoftmaxArgs softmax{.logits = x_.logits,
                              .visible = x_.visible,
                              .n = n,
                              .n_tokens = n_tokens,
                              .max = x_.max + entry,
                              .sum = x_.sum + entry,
                              .out = x_.out + entry * s_.dp,
                              .dp = s_.dp};
    const WeighArgs weigh{.p = x_.logits,
                          .visible = x_.visible,
                          .n = n,
                          .av = view.av,
                          .rank_v = s_.rank_v,
                          .n_heads = s_.h,
                          .weights = x_.weights};
    const void* weights = x_.rounded;
    if (k.softmax_weights != nullptr) {
      k.softmax_weights(softmax, weigh, x_.rounded);
    } else {
      k.softmax(softmax);
      FetchPiece();
      k.weigh(weigh);
      weights = k.round(x_.weights, static_cast<size_t>(n) * s_.rank_v * 64, x_.rounded);
    }
    Values(weights, n, x_.out + entry * s_.dp, view, valid);
  }

  // out += weights V, rank by rank in one sum.
  void Values(const void* weights, int n, float* out, const PageView& view, int valid) {
    const AttentionKernels& k = *run_.kernels;
    GemmArgs product{.lda = s_.rank_v * 64, .ldb = s_.dp, .c = out, .ldc = s_.dp};
    product.m = n, product.n = s_.dp, product.accumulate = true, product.fetch = &next_;
    if (n_blocks_ == 1 && k.gemm_rows != nullptr) {
      if (valid < 64 && s_.d == s_.dp) return PartOfValues(weights, product, view, valid);
      // The page's rows of all ranks lie one behind the other.
      product.a = weights, product.b = PaddedRows(run_, view.bv, s_.rank_v, valid, x_.padded_values);
      product.k = s_.rank_v * 64;
      return k.gemm_rows(product);
    }
    for (int u = 0; u < s_.rank_v; ++u) {
      FetchPiece();
      product.a = At(weights, u * 64, k.compute);
      product.b = n_blocks_ > 1 ? values_[u] : PackValues(view, u, valid);
      product.k = 64;
      k.gemm(product);
    }
  }

  // Of a page that is partly filled: its whole groups of 32 tokens where they lie, then a copy of the others
  // with zeros behind.
  void PartOfValues(const void* weights, GemmArgs product, const PageView& view, int valid) {
    const AttentionKernels& k = *run_.kernels;
    const size_t element = SizeOf(k.page), row_bytes = s_.d * element;
    const int whole = valid / 32 * 32, rest = valid - whole;
    for (int u = 0; u < s_.rank_v; ++u) {
      const uint8_t* rows = view.bv + static_cast<size_t>(u) * 64 * row_bytes;
      product.a = At(weights, u * 64, k.compute), product.b = rows, product.k = whole;
      if (whole > 0) k.gemm_rows(product);
      if (rest == 0) continue;
      auto* copy = reinterpret_cast<uint8_t*>(x_.padded_values);
      std::memcpy(copy, rows + whole * row_bytes, rest * row_bytes);
      std::memset(copy + rest * row_bytes, 0, (32 - rest) * row_bytes);
      product.a = At(weights, u * 64 + whole, k.compute), product.b = copy, product.k = 32;
      k.gemm_rows(product);
    }
  }

  const AttentionRun& run_;
  const AttentionShape& s_;
  const FactorTask& task_;
  const FactorScratch& x_;
  WorkerState* worker_;
  const int n_blocks_;
  PageFetch next_;
  const void* keys_[kMaxFactorRank];
  const void* values_[kMaxFactorRank];
  bool factored_ = false;
  int block_entries_ = 0;  // from one block's entries to the next in out, max and sum
};

}  // namespace

size_t FactorScratchBytes(const AttentionShape& shape) {
  Carver carver(nullptr);
  const FactorScratch scratch(shape, carver);
  return carver.used();
}

void RunFactorTask(const AttentionRun& run, const FactorTask& task, uint8_t* scratch, WorkerState* worker) {
  Carver carver(scratch);
  const FactorScratch x(*run.shape, carver);
  FactorPass pass(run, task, x, worker);
  const bool stores = task.stores && run.store != nullptr;
  if (stores) ExpectFactorRow(*run.store, run.step->slots[task.first_row]);
  if (run.kernels->enter != nullptr) run.kernels->enter();
  pass.Begin();
  if (stores) StoreFactorRow(*run.kernels, *run.store, *run.step, task.first_row, x.store);
  for (int page = task.page_begin; page < task.page_end; ++page) pass.Page(page);
  pass.End();
  if (run.kernels->leave != nullptr) run.kernels->leave();
}

}  // namespace t6::cpu
