// Several rows on the same pages, head by head, on kernels that can: keys and values are expanded for two
// heads at a time, which go through all pages of the task before the next two do. So a head's outputs stay in
// the first-level cache, the pages' prepared factors in the second, and a task leaves one partial a row.
#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/backend/cpu/tpa_attention_page.h"
#include "engine/backend/cpu/tpa_attention_tasks.h"

namespace t6::cpu {
namespace {

constexpr int kHeads = 2;       // at a time
constexpr int kFirstHeads = 4;  // go through the pages first: while they compute, the next page comes

struct HeadScratch {
  HeadScratch(const AttentionShape& s, Carver& c)
      : paired_keys_size(static_cast<size_t>(RoundUp(s.rank_k, 2)) * 64 * s.dp),
        paired_values_size(static_cast<size_t>(RoundUp(s.rank_v, 2)) * 64 * s.dp),
        weight_floats(static_cast<size_t>(s.max_task_rows) * 64),
        pages(c.Take<bf16>(PageNumbers(s) * s.max_head_pages)),
        padded(c.Take<float>(static_cast<size_t>(std::max(s.rank_k, s.rank_v)) * 64 * s.dp)),
        rotated(c.Take<float>(static_cast<size_t>(s.n_query_vectors) * s.dp)),
        query(c.Take<float>(static_cast<size_t>(s.h) * s.dp)),
        queries(c.Take<float>(static_cast<size_t>(s.max_task_rows) * s.h * s.dp)),
        paired_keys(c.Take<float>(paired_keys_size * s.max_head_pages)),
        paired_values(c.Take<float>(paired_values_size * s.max_head_pages)),
        expanded(c.Take<float>(static_cast<size_t>(kHeads) * 64 * s.dp)),
        weights(c.Take<float>(kHeads * weight_floats)),
        out(c.Take<float>(static_cast<size_t>(kFirstHeads) * s.max_task_rows * s.dp)),
        max(c.Take<float>(static_cast<size_t>(kFirstHeads) * s.max_task_rows)),
        sum(c.Take<float>(static_cast<size_t>(kFirstHeads) * s.max_task_rows)),
        visible(c.Take<int>(static_cast<size_t>(s.max_head_pages) * s.max_task_rows)) {}

  size_t paired_keys_size, paired_values_size;  // operands of a page
  size_t weight_floats;                         // of a head
  bf16* pages;
  float *padded, *rotated, *query, *queries, *paired_keys, *paired_values, *expanded, *weights, *out, *max,
      *sum;
  int* visible;
};

class HeadPass {
 public:
  HeadPass(const AttentionRun& run, const FactorTask& task, const HeadScratch& scratch, WorkerState* worker)
      : run_(run), s_(*run.shape), k_(*run.kernels), task_(task), x_(scratch), worker_(worker) {}

  void Run() {
    FormQueries();
    for (int head = 0; head < s_.h; head += n_heads_) {
      n_heads_ = std::min(head == 0 ? kFirstHeads : kHeads, s_.h - head);
      std::fill_n(x_.max, n_heads_ * task_.n_rows, -std::numeric_limits<float>::infinity());
      std::fill_n(x_.sum, n_heads_ * task_.n_rows, 0.0f);
      for (int i = 0; i < task_.n_pages(); ++i) {
        if (head == 0) ReadPage(i);
        const bool last = i + 1 == task_.n_pages();
        if (head == 0 && !last) Fetch(task_.pages[task_.page_begin + i + 1]);
        if (head + n_heads_ >= s_.h && last && task_.next_page >= 0) Fetch(task_.next_page);
        for (int j = 0; j < n_heads_; j += kHeads) Page(head, j, std::min(kHeads, n_heads_ - j), i);
        next_ = {};
      }
      Leave(head);
    }
  }

 private:
  void Fetch(int32_t page) {
    const size_t bytes = run_.params->pages.layout->page_bytes();
    next_.at = run_.params->pages.base + page * bytes;
    next_.end = next_.at + bytes;
  }

  // A worker's tasks often have the same rows. A row's queries lie behind those of the row before; the first
  // page comes meanwhile.
  void FormQueries() {
    const WorkerState::Rows now{run_.serial, task_.first_row, task_.n_rows};
    if (worker_->formed == now) return;
    worker_->formed = now;
    Fetch(task_.pages[task_.page_begin]);
    const size_t lines = (next_.end - next_.at) / 64 / task_.n_rows + 1,
                 n = static_cast<size_t>(s_.h) * s_.dp;
    for (int i = 0; i < task_.n_rows; ++i) {
      for (size_t line = 0; line < lines; ++line) next_.Lines<1>();
      RotateQueries(run_, task_.first_row + i, x_.rotated);
      const float* query = MixQueries(run_, task_.first_row + i, x_.rotated, x_.query);
      auto* out = Operands(x_.queries, i * n);
      if (const void* rounded = k_.round(query, n, out); rounded != out)
        std::memcpy(out, rounded, n * sizeof(float));
    }
    next_ = {};
  }
  uint8_t* Operands(float* buffer, size_t at) const {
    return reinterpret_cast<uint8_t*>(buffer) + at * SizeOf(k_.compute);
  }

  void* PairedKeys(int i) const { return Operands(x_.paired_keys, i * x_.paired_keys_size); }
  void* PairedValues(int i) const { return Operands(x_.paired_values, i * x_.paired_values_size); }

  int* VisibleOf(int i) const { return x_.visible + static_cast<size_t>(i) * task_.n_rows; }

  void ReadPage(int i) {
    const int page = task_.page_begin + i;
    for (int row = 0; row < task_.n_rows; ++row)
      VisibleOf(i)[row] = Visible(run_.positions[task_.first_row + row], page);
    // The task's last row sees the most; what lies beyond is not read.
    const int valid = VisibleOf(i)[task_.n_rows - 1];
    const PageView view = ViewPage(run_, task_.pages[page], 0, s_.h, x_.pages + i * PageNumbers(s_));
    k_.pair_keys(PaddedRows(run_, view.bk, s_.rank_k, valid, x_.padded), s_.rank_k, s_.dp, PairedKeys(i));
    k_.pair_values(PaddedRows(run_, view.bv, s_.rank_v, valid, x_.padded), s_.rank_v, s_.dp, PairedValues(i));
    keys_[i] = {.a = view.ak, .rank = s_.rank_k, .n_heads = s_.h, .dp = s_.dp, .valid = valid};
    values_[i] = {.a = view.av, .rank = s_.rank_v, .n_heads = s_.h, .dp = s_.dp, .valid = valid};
  }

  // The heads' keys, then their values in the same place: the first-level cache holds either, with the
  // weights.
  void Page(int head, int first, int n, int i) {
    keys_[i].head = values_[i].head = head + first;
    k_.head_keys(keys_[i], n, PairedKeys(i), x_.expanded);
    for (int j = first; j < first + n; ++j) Weights(head + j, j, i);
    k_.head_values(values_[i], n, PairedValues(i), x_.expanded);
    for (int j = first; j < first + n; ++j) Values(j, i);
  }

  // The j-th head at this time uses place j mod kHeads of what is made for one page.
  const void* Expanded(int j) const {
    return Operands(x_.expanded, static_cast<size_t>(j % kHeads) * 64 * s_.dp);
  }
  // A row's outputs of the heads at this time lie side by side.
  size_t OutStride() const { return static_cast<size_t>(n_heads_) * s_.dp; }
  float* WeightsOf(int j) const { return x_.weights + j % kHeads * x_.weight_floats; }

  void Weights(int head, int j, int i) {
    k_.head_weights({.queries = Operands(x_.queries, static_cast<size_t>(head) * s_.dp),
                     .query_stride = static_cast<size_t>(s_.h) * s_.dp,
                     .keys = Expanded(j),
                     .dp = s_.dp,
                     .n = task_.n_rows,
                     .visible = VisibleOf(i),
                     .max = x_.max + j * task_.n_rows,
                     .sum = x_.sum + j * task_.n_rows,
                     .out = x_.out + static_cast<size_t>(j) * s_.dp,
                     .out_stride = OutStride(),
                     .weights = WeightsOf(j),
                     .fetch = next_.at < next_.end ? &next_ : nullptr});
  }

  // The first page's product overwrites the output.
  void Values(int j, int i) {
    k_.gemm({.a = WeightsOf(j),
             .lda = 64,
             .b = Expanded(j),
             .ldb = s_.dp,
             .c = x_.out + static_cast<size_t>(j) * s_.dp,
             .ldc = static_cast<int>(OutStride()),
             .m = task_.n_rows,
             .n = s_.dp,
             .k = 64,
             .accumulate = i > 0,
             .fetch = next_.at < next_.end ? &next_ : nullptr});
  }

  // The heads' partials, to their rows' slots.
  void Leave(int head) {
    for (int row = 0; row < task_.n_rows; ++row) {
      float* slot = run_.slots + (run_.plan->slot(task_.first_row + row) + task_.part) * s_.slot_floats;
      float* max = slot + static_cast<size_t>(s_.h) * s_.dp;
      std::memcpy(slot + static_cast<size_t>(head) * s_.dp, x_.out + row * OutStride(),
                  sizeof(float) * OutStride());
      for (int j = 0; j < n_heads_; ++j) {
        max[head + j] = x_.max[j * task_.n_rows + row];
        max[s_.h + head + j] = x_.sum[j * task_.n_rows + row];
      }
    }
  }

  const AttentionRun& run_;
  const AttentionShape& s_;
  const AttentionKernels& k_;
  const FactorTask& task_;
  const HeadScratch& x_;
  WorkerState* worker_;
  PageFetch next_;
  int n_heads_ = 0;  // at this time
  ExpandArgs keys_[kMostHeadPages], values_[kMostHeadPages];
};

}  // namespace

size_t HeadScratchBytes(const AttentionShape& shape) {
  Carver carver(nullptr);
  const HeadScratch scratch(shape, carver);
  return carver.used();
}

void RunHeadTask(const AttentionRun& run, const FactorTask& task, uint8_t* scratch, WorkerState* worker) {
  Carver carver(scratch);
  const HeadScratch x(*run.shape, carver);
  HeadPass(run, task, x, worker).Run();
}

}  // namespace t6::cpu
