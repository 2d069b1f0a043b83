#include "engine/backend/cpu/tpa_attention.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "engine/backend/cpu/tpa_attention_impl.h"
#include "engine/backend/cpu/tpa_attention_store.h"
#include "engine/backend/cpu/tpa_attention_tasks.h"
#include "engine/base/check.h"

namespace t6::cpu {
namespace {

constexpr size_t kSlotBytes = size_t{16} << 20;  // partials of one wave, at least
constexpr int kAloneCost = 20;                   // of tasks that take less time than a second worker saves
constexpr int kStoreRows = 4;                    // rows of one task of Store and of rotation

struct FreeBytes {
  void operator()(void* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<uint8_t, FreeBytes>;

size_t RoundUp(size_t x, size_t step) { return (x + step - 1) / step * step; }

// Zeroed, so that rows that only pad a product hold numbers.
Bytes AllocateBytes(size_t n) {
  n = RoundUp(std::max<size_t>(n, 1), 128);
  void* p = std::aligned_alloc(128, n);
  if (p != nullptr) std::fill_n(static_cast<uint8_t*>(p), n, uint8_t{0});
  return Bytes(static_cast<uint8_t*>(p));
}

// What Reserve allocates.
struct Sizes {
  Sizes(const StepLimits& limits, const AttentionShape& shape, int n_threads) {
    const size_t splits = SplitsOf(limits.max_context / kPageTokens + 1);
    const size_t slot_bytes = shape.slot_floats * sizeof(float);
    // Never more than every row needs at once.
    const size_t all = splits * std::max(limits.max_rows, 1);
    n_slots = std::max(splits, std::min(all, kSlotBytes / slot_bytes));
    slots = n_slots * slot_bytes;
    queries = static_cast<size_t>(limits.max_rows) * shape.n_query_vectors * shape.dp * sizeof(float);
    scratch = RoundUp(shape.scratch_bytes, 4096);
    store = RoundUp(shape.store_floats * sizeof(float), 128);
    counters = static_cast<size_t>(limits.max_rows) * sizeof(std::atomic<int32_t>);
    total = slots + queries + (scratch + store) * n_threads + counters;
  }
  size_t n_slots, slots, queries, scratch, store, counters, total;
};

class TpaAttentionImpl final : public TpaAttention {
 public:
  TpaAttentionImpl(ThreadPool* pool, const AttentionKernels& f32, const AttentionKernels& bf16)
      : pool_(pool), f32_(f32), bf16_(bf16), workers_(pool->n_threads()) {}

  size_t WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec) const override {
    return Sizes(limits, AttentionShape(spec), pool_->n_threads()).total;
  }

  Status Reserve(const StepLimits& limits, const AttentionSpec& spec) override {
    for (const FactorSpec* f : {&spec.k, &spec.v}) {
      if (f->a != HeadFactor::kContextual || f->b != DimFactor::kContextual) {
        return Unimplemented("attention on the CPU has no constant or one-hot factors yet");
      }
    }
    if (std::min(spec.k.rank, spec.v.rank) < 1 || std::max(spec.k.rank, spec.v.rank) > kMaxFactorRank) {
      return Unimplemented("ranks {} and {} of keys and values; 1 to {} can be served", spec.k.rank,
                           spec.v.rank, kMaxFactorRank);
    }
    const AttentionShape shape(spec);
    const Sizes sizes(limits, shape, pool_->n_threads());
    slots_ = AllocateBytes(sizes.slots);
    queries_ = AllocateBytes(sizes.queries);
    scratch_ = AllocateBytes(sizes.scratch * pool_->n_threads());
    store_ = AllocateBytes(sizes.store * pool_->n_threads());
    if (slots_ == nullptr || queries_ == nullptr || scratch_ == nullptr || store_ == nullptr) {
      return ResourceExhausted("attention's workspaces of {} bytes cannot be allocated", sizes.total);
    }
    waiting_ = std::make_unique<std::atomic<int32_t>[]>(limits.max_rows);
    scratch_stride_ = sizes.scratch, store_stride_ = sizes.store;
    n_slots_ = static_cast<int>(sizes.n_slots);
    max_rows_ = limits.max_rows;
    return absl::OkStatus();
  }

  void Plan(const StepPlan& plan, const AttentionSpec& spec) override {
    T6_CHECK(plan.n_rows() <= max_rows_, "{} rows, {} reserved", plan.n_rows(), max_rows_);
    plan_ = &plan;
    planned_for_ = nullptr;
  }

  void Store(const StoreFactorsParams& params) override {
    ForRows(plan_->n_rows(), [&](int row, int worker) { StoreRow(params, row, worker); });
  }

  void StoreInRun(const StoreFactorsParams& params) override { to_store_ = params; }

  void Run(const TpaAttentionParams& params) override {
    const AttentionShape shape(*params.spec);
    const AttentionKernels& kernels = KernelsFor(params.pages);
    if (std::exchange(planned_for_, &kernels) != &kernels) {
      tasks_.Build(*plan_, {.n_heads = shape.h,
                            .n_threads = pool_->n_threads(),
                            .n_slots = n_slots_,
                            .max_task_rows = shape.max_task_rows,
                            .head_rows = HeadRowsOf(kernels, shape),
                            .max_head_pages = shape.max_head_pages});
    }
    const std::optional<StoreFactorsParams> store = std::exchange(to_store_, std::nullopt);
    auto* queries = reinterpret_cast<float*>(queries_.get());
    const AttentionRun run{.kernels = &kernels,
                           .shape = &shape,
                           .params = &params,
                           .positions = plan_->positions.data(),
                           .queries = queries,
                           .slots = reinterpret_cast<float*>(slots_.get()),
                           .plan = &tasks_,
                           .step = plan_,
                           .store = store.has_value() ? &*store : nullptr,
                           .serial = ++n_runs_};
    if (store.has_value()) {
      const std::vector<int32_t>& rows = tasks_.other_rows();
      ForRows(static_cast<int>(rows.size()), [&](int i, int worker) { StoreRow(*store, rows[i], worker); });
    }
    if (!tasks_.expand_tasks().empty()) {
      const size_t row_floats = static_cast<size_t>(shape.n_query_vectors) * shape.dp;
      ForRows(plan_->n_rows(),
              [&](int row, int /*worker*/) { RotateQueries(run, row, queries + row * row_floats); });
    }
    for (int row = 0; row < plan_->n_rows(); ++row)
      waiting_[row].store(tasks_.n_last_tasks(row), std::memory_order_relaxed);

    for (size_t w = 0; w < tasks_.waves().size(); ++w) RunWave(run, static_cast<int>(w));
  }

 private:
  const AttentionKernels& KernelsFor(const LayerPages& pages) const {
    return pages.layout->dtype() == DType::kF32 ? f32_ : bf16_;
  }
  uint8_t* Scratch(int worker) const { return scratch_.get() + worker * scratch_stride_; }

  void RunWave(const AttentionRun& run, int w) {
    const AttentionWave& wave = tasks_.waves()[w];
    const auto& expand = tasks_.expand_tasks();
    const auto shared = [&](int i, int worker) {
      RunFactorTask(run, tasks_.shared_tasks()[wave.shared_begin + i], Scratch(worker), &workers_[worker]);
    };
    const auto last = [&](int i, int worker) {
      const FactorTask& task = tasks_.last_tasks()[wave.last_begin + i];
      (task.by_heads ? RunHeadTask : RunFactorTask)(run, task, Scratch(worker), &workers_[worker]);
      for (int row = task.first_row; row < task.first_row + task.n_rows; ++row) {
        // The last of a row's tasks sees what all others wrote.
        if (waiting_[row].fetch_sub(1, std::memory_order_acq_rel) == 1) FinishRow(run, row);
      }
    };
    if (wave.shared_end > wave.shared_begin) Shares(wave.shared_shares, shared);
    // Expanded tasks depend on nothing and are long: they go first, the longest in front.
    const int n_expand = w == 0 ? static_cast<int>(expand.size()) : 0,
              n_last = wave.last_end - wave.last_begin;
    if (n_expand == 0 && wave.last_cost <= kAloneCost) {
      for (int i = 0; i < n_last; ++i) last(i, 0);
      return;
    }
    if (n_expand == 0) return Shares(wave.last_shares, last);
    pool_->Run(n_expand + n_last, [&](int i, int worker) {
      if (i >= n_expand) return last(i - n_expand, worker);
      workers_[worker].formed = {};  // their place is taken
      RunExpandTask(run, expand[i], Scratch(worker));
    });
  }

  template <typename Task>
  void Shares(const std::vector<int>& shares, const Task& task) {
    pool_->RunShares(shares.data(), 1, [&](int first, int /*end*/, int worker) { task(first, worker); });
  }

  void StoreRow(const StoreFactorsParams& params, int row, int worker) const {
    StoreFactorRow(KernelsFor(params.pages), params, *plan_, row,
                   reinterpret_cast<float*>(store_.get() + worker * store_stride_));
  }

  template <typename F>
  void ForRows(int n_rows, const F& f) {
    pool_->RunSticky(n_rows, kStoreRows, [&](int begin, int end, int worker) {
      for (int i = begin; i < end; ++i) f(i, worker);
    });
  }

  ThreadPool* pool_;
  AttentionKernels f32_, bf16_;
  std::vector<WorkerState> workers_;
  uint64_t n_runs_ = 0;
  AttentionPlan tasks_;
  const AttentionKernels* planned_for_ = nullptr;  // whose division of this step tasks_ is; null: none yet
  const StepPlan* plan_ = nullptr;
  std::optional<StoreFactorsParams> to_store_;  // by the next Run
  Bytes slots_, queries_, scratch_, store_;
  std::unique_ptr<std::atomic<int32_t>[]> waiting_;  // last tasks that each row still waits for
  size_t scratch_stride_ = 0, store_stride_ = 0;     // of a worker
  int n_slots_ = 0;
  int max_rows_ = 0;
};

}  // namespace

std::unique_ptr<TpaAttention> TpaAttention::Make(ThreadPool* pool) {
  return MakeTpaAttention(pool, BestAttentionKernels(DType::kF32), BestAttentionKernels(DType::kBF16));
}

std::unique_ptr<TpaAttention> MakeTpaAttention(ThreadPool* pool, const AttentionKernels& f32,
                                               const AttentionKernels& bf16) {
  return std::make_unique<TpaAttentionImpl>(pool, f32, bf16);
}

}  // namespace t6::cpu
