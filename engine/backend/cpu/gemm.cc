#include "engine/backend/cpu/gemm.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "engine/backend/cpu/gemm_onednn.h"
#include "engine/backend/cpu/gemm_tile.h"
#include "engine/backend/cpu/row_ops.h"
#include "engine/base/check.h"
#include "engine/tensor/buffer.h"

namespace t6::cpu {
namespace {

constexpr int kTileRows = 128;   // rows of one tile: its sums stay in the second-level cache
constexpr int kOnednnRows = 64;  // from here on float32 goes to oneDNN, where it knows our packing
constexpr size_t kReadAheadBytes = size_t{512} << 10;  // what a second-level cache keeps beside its work
constexpr int kOwnRowsWork =
    16384;                       // numbers that every worker prepares by itself, rather than wait for others
constexpr int kTaskWork = 3072;  // numbers to prepare in one task, at least

int RoundUp(int n, int step) { return (n + step - 1) / step * step; }

// A matrix's place in the order in which a step reads all of them, as the last step showed it.
struct WeightOrder {
  const uint8_t* data;
  size_t unit_bytes;
  int n_units;
  const WeightOrder* next = nullptr;
  std::vector<ThreadPool::ReadAhead> ahead = {};  // of each worker, while this one is multiplied,
  uint64_t ahead_of = 0;                          // at this count of changes of the order
};

// Blocks of 64 columns, as gemm_tile.h says. With swiglu, blocks of gate and up take turns, so that one
// thread has both.
class PackedWeights final : public PackedMatrix {
 public:
  PackedWeights(int n, int k, DType dtype, bool swiglu, uint8_t* data, WeightOrder* order)
      : PackedMatrix(n, k), dtype_(dtype), swiglu_(swiglu), data_(data), order_(order) {}

  DType dtype() const { return dtype_; }
  bool swiglu() const { return swiglu_; }
  int k_padded() const { return RoundUp(k(), kDepthStep); }
  int n_outputs() const { return swiglu_ ? n() / 2 : n(); }
  // A unit is what one task computes at least: a block, or one of gate and one of up.
  int n_units() const { return RoundUp(n_outputs(), kBlockColumns) / kBlockColumns; }
  size_t block_bytes() const { return static_cast<size_t>(k_padded()) * kBlockColumns * SizeOf(dtype_); }
  const uint8_t* block(int i) const { return data_ + i * block_bytes(); }
  uint8_t* block(int i) { return data_ + i * block_bytes(); }
  WeightOrder* order() const { return order_; }

 private:
  DType dtype_;
  bool swiglu_;
  uint8_t* data_;  // in the arena
  WeightOrder* order_;
};

// Puts matrices one behind the other into large buffers, so that small ones lie in huge pages too: with pages
// of 4 KiB a core's prefetcher starts anew, and its translation misses, every 16 rows of a block. They stay
// as long as the arena, because workers read ahead.
class WeightArena {
 public:
  StatusOr<uint8_t*> Take(size_t bytes) {
    if (buffers_.empty() || buffers_.back().size() - used_ < bytes) {
      // Untouched memory costs nothing.
      T6_ASSIGN_OR_RETURN(HostBuffer buffer, HostBuffer::Allocate(std::max(bytes, kBufferBytes)));
      buffers_.push_back(std::move(buffer));
      used_ = 0;
    }
    return buffers_.back().data() + std::exchange(used_, used_ + (bytes + kLine - 1) / kLine * kLine);
  }

 private:
  static constexpr size_t kBufferBytes = size_t{64} << 20, kLine = 128;
  std::vector<HostBuffer> buffers_;
  size_t used_ = 0;  // of the last one
};

const void* RowOf(const TensorView& part, int64_t row) {
  return static_cast<const uint8_t*>(part.data) +
         static_cast<size_t>(row * part.shape[1]) * SizeOf(part.dtype);
}

// Puts one column (a row of the checkpoint's matrix) at its place in a block.
void PackColumn(const void* source, DType from, int k, DType to, int column, uint8_t* block,
                std::vector<float>& row) {
  row.assign(RoundUp(k, 2), 0.0f);
  ConvertToFloat(source, from, k, row.data());
  if (to == DType::kF32) {
    auto* out = reinterpret_cast<float*>(block) + column;
    for (int i = 0; i < k; ++i) out[static_cast<size_t>(i) * kBlockColumns] = row[i];
    return;
  }
  auto* out = reinterpret_cast<uint32_t*>(block) + column;
  for (int i = 0; i < k; i += 2) {
    const uint32_t low = ToBf16(row[i]).bits, high = ToBf16(row[i + 1]).bits;
    out[static_cast<size_t>(i / 2) * kBlockColumns] = low | (high << 16);
  }
}

Status CheckParts(const std::vector<TensorView>& parts, DType compute, bool swiglu) {
  if (compute != DType::kF32 && compute != DType::kBF16) {
    return InvalidArgument("products are computed in f32 or bf16, not {}", NameOf(compute));
  }
  if (parts.empty()) return InvalidArgument("a packed matrix needs at least one part");
  int64_t n = 0;
  for (const TensorView& part : parts) {
    if (part.shape.size() != 2 || part.shape[0] < 1 || part.shape[1] < 1 ||
        part.shape[1] != parts[0].shape[1] || part.dtype == DType::kI32) {
      return InvalidArgument("cannot pack {} of {} beside {}", NameOf(part.dtype), part.ShapeString(),
                             parts[0].ShapeString());
    }
    n += part.shape[0];
  }
  constexpr int64_t kMost = int64_t{1} << 30;
  if (n > kMost || parts[0].shape[1] > kMost)
    return InvalidArgument("a matrix of [{}, {}] is too large", n, parts[0].shape[1]);
  if (swiglu && (parts.size() != 2 || parts[0].shape != parts[1].shape)) {
    return InvalidArgument("SwiGLU needs gate and up of one shape, not {} parts, the first {}", parts.size(),
                           parts[0].ShapeString());
  }
  return absl::OkStatus();
}

class GemmImpl final : public Gemm {
 public:
  explicit GemmImpl(ThreadPool* pool)
      : pool_(pool), kernels_(ChooseBlockKernels()), onednn_(pool->n_threads()), own_(pool->n_threads()) {}
  ~GemmImpl() override { pool_->StopReadingAhead(); }

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(const std::vector<TensorView>& parts, DType compute,
                                               bool swiglu) override;
  size_t WorkspaceBytes(int max_rows, int max_k, int max_n) const override {
    return PreparedBytes(max_rows, max_k) + own_.size() * (kTileBytes + OwnRowsBytes(max_k));
  }
  Status Reserve(int max_rows, int max_k, int max_n) override;
  void Project(const ProjectParams& params) override;

 private:
  static constexpr size_t kTileBytes = size_t{kTileRows} * 2 * kBlockColumns * sizeof(float);
  static size_t OwnRowsBytes(int k) { return std::max(kOwnRowsWork, RoundUp(k, kDepthStep)) * sizeof(float); }
  // A worker's memory. It prepares few rows by itself: that takes less time than waiting for another one.
  struct alignas(64) Own {
    HostBuffer tile, rows;
    uint64_t rows_of = 0;  // the product that `rows` belong to
  };

  static size_t PreparedBytes(int rows, int k) {
    return static_cast<size_t>(RoundUp(rows, kRowStep)) * RoundUp(k, kDepthStep) * sizeof(float);
  }
  static void PrepareRows(const ProjectParams& params, int begin, int end, uint8_t* prepared);
  void PrepareAllRows(const ProjectParams& params);
  // What computes one call's tiles: oneDNN's products for 32, 64, 96 and 128 rows where they are set, else
  // the kernel.
  struct Job {
    const PackedWeights* weights = nullptr;
    const uint8_t* rows = nullptr;  // prepared; null: each worker prepares its own
    BlockKernel kernel = nullptr;
    int blocks_at_once = 1;
    int n_shared = 0;  // units that workers have equal runs of
    std::array<const OnednnProduct*, kTileRows / kRowStep> onednn = {};
  };
  Job MakeJob(const PackedWeights& weights, int n_rows);
  struct Units {
    int first, end;
  };
  void MultiplyTile(const Job& job, const Units& units, int row, int n_rows, int worker) const;
  void ProjectUnits(const ProjectParams& params, const Job& job, const Units& units, int first_row,
                    int end_row, int worker) const;

  void SetReadAhead(WeightOrder* order);

  ThreadPool* pool_;
  BlockKernels kernels_;
  OnednnProducts onednn_;
  WeightArena arena_;
  std::vector<std::unique_ptr<WeightOrder>> orders_;
  WeightOrder* last_order_ = nullptr;  // of the last product
  uint64_t n_order_changes_ = 1;
  std::vector<Own> own_;  // one a worker
  HostBuffer prepared_;   // the input rows: normalised, rounded, padded
  uint64_t n_products_ = 0;
};

StatusOr<std::unique_ptr<PackedMatrix>> GemmImpl::Pack(const std::vector<TensorView>& parts, DType compute,
                                                       bool swiglu) {
  T6_RETURN_IF_ERROR(CheckParts(parts, compute, swiglu));
  std::vector<std::pair<const TensorView*, int64_t>> rows;  // each output feature's part, and row within it
  for (const TensorView& part : parts) {
    for (int64_t i = 0; i < part.shape[0]; ++i) rows.emplace_back(&part, i);
  }
  const int n = static_cast<int>(rows.size());
  const int k = static_cast<int>(parts[0].shape[1]);
  const int n_outputs = swiglu ? n / 2 : n;
  const int n_blocks = RoundUp(n_outputs, kBlockColumns) / kBlockColumns * (swiglu ? 2 : 1);
  const size_t block_bytes = static_cast<size_t>(RoundUp(k, kDepthStep)) * kBlockColumns * SizeOf(compute);
  T6_ASSIGN_OR_RETURN(uint8_t * data, arena_.Take(n_blocks * block_bytes));
  const int n_units = n_outputs / kBlockColumns;
  orders_.push_back(
      std::make_unique<WeightOrder>(WeightOrder{data, (swiglu ? 2 : 1) * block_bytes, std::max(1, n_units)}));
  auto packed = std::make_unique<PackedWeights>(n, k, compute, swiglu, data, orders_.back().get());
  pool_->Run(n_blocks, [&](int block, int) {
    std::vector<float> row;
    const int first = (swiglu ? block / 2 : block) * kBlockColumns;
    const int base = swiglu && block % 2 == 1 ? n_outputs : 0;
    for (int c = 0; c < kBlockColumns && first + c < n_outputs; ++c) {
      const auto [part, i] = rows[base + first + c];
      PackColumn(RowOf(*part, i), part->dtype, k, compute, c, packed->block(block), row);
    }
  });
  return std::unique_ptr<PackedMatrix>(std::move(packed));
}

Status GemmImpl::Reserve(int max_rows, int max_k, int max_n) {
  if (prepared_.size() < PreparedBytes(max_rows, max_k)) {
    T6_ASSIGN_OR_RETURN(prepared_, HostBuffer::Allocate(PreparedBytes(max_rows, max_k)));
  }
  for (Own& own : own_) {
    if (own.rows.size() >= OwnRowsBytes(max_k)) continue;
    T6_ASSIGN_OR_RETURN(own.tile, HostBuffer::Allocate(kTileBytes));
    T6_ASSIGN_OR_RETURN(own.rows, HostBuffer::Allocate(OwnRowsBytes(max_k)));
  }
  return absl::OkStatus();
}

void GemmImpl::PrepareRows(const ProjectParams& p, int begin, int end, uint8_t* prepared) {
  const auto& weights = static_cast<const PackedWeights&>(*p.weight);
  const int k = weights.k(), k_padded = weights.k_padded();
  if (p.in_dtype == DType::kBF16) {  // rounded already
    const auto* in = static_cast<const bf16*>(p.in);
    auto* out = reinterpret_cast<bf16*>(prepared) + static_cast<size_t>(begin) * k_padded;
    for (int r = begin; r < end; ++r, out += k_padded) {
      std::copy_n(in + static_cast<size_t>(p.row_index != nullptr ? p.row_index[r] : r) * k, k, out);
      std::fill(out + k, out + k_padded, bf16{});
    }
    return;
  }
  const auto prepare = [&](auto* out) {
    for (int r = begin; r < end; ++r) {
      const size_t source = p.row_index != nullptr ? p.row_index[r] : r;
      PrepareRow(static_cast<const float*>(p.in) + source * k, k, k_padded, p.norm,
                 out + static_cast<size_t>(r) * k_padded);
    }
  };
  if (weights.dtype() == DType::kF32) return prepare(reinterpret_cast<float*>(prepared));
  prepare(reinterpret_cast<bf16*>(prepared));
}

void GemmImpl::PrepareAllRows(const ProjectParams& p) {
  const int rows_per_task = std::max(1, kTaskWork / RoundUp(p.weight->k(), kDepthStep));
  const int n_tasks = (p.n_rows + rows_per_task - 1) / rows_per_task;
  pool_->Run(n_tasks, [&](int i, int) {
    PrepareRows(p, p.n_rows * i / n_tasks, p.n_rows * (i + 1) / n_tasks, prepared_.data());
  });
}

void GemmImpl::MultiplyTile(const Job& job, const Units& units, int row, int n_rows, int worker) const {
  const PackedWeights& weights = *job.weights;
  const int blocks_each = weights.swiglu() ? 2 : 1, n_blocks = (units.end - units.first) * blocks_each;
  const uint8_t* a = (job.rows != nullptr ? job.rows : own_[worker].rows.data()) +
                     static_cast<size_t>(row) * weights.k_padded() * SizeOf(weights.dtype());
  float* tile = own_[worker].tile.as<float>();
  if (const OnednnProduct* product = job.onednn[(n_rows - 1) / kRowStep]) {
    product->Run(reinterpret_cast<const float*>(a), weights.block(units.first * blocks_each), tile, worker);
    return;
  }
  BlockProduct product;
  product.a = a;
  product.a_stride = weights.k_padded();
  product.n_rows = n_rows;
  product.k_padded = weights.k_padded();
  product.c_stride = static_cast<size_t>(n_blocks) * kBlockColumns;
  product.n_columns = std::min(kBlockColumns, weights.n_outputs() - units.first * kBlockColumns);
  const int end_of_run = pool_->FirstOf(job.n_shared, worker + 1) * blocks_each;
  for (int block = 0; block < n_blocks; block += job.blocks_at_once) {
    product.n_blocks = std::min(job.blocks_at_once, n_blocks - block);
    // What this worker multiplies next: the block behind, or the beginning of its share of another matrix.
    const uint8_t* b = weights.block(units.first * blocks_each + block);
    const bool last = units.first * blocks_each + block + 1 == end_of_run;
    product.b = b;
    product.next = last ? weights.order()->ahead[worker][0].at : b + weights.block_bytes();
    product.c = tile + block * kBlockColumns;
    job.kernel(product);
  }
}

void GemmImpl::ProjectUnits(const ProjectParams& p, const Job& job, const Units& units, int first_row,
                            int end_row, int worker) const {
  const PackedWeights& weights = *job.weights;
  const float* tile = own_[worker].tile.as<float>();
  const int blocks_each = weights.swiglu() ? 2 : 1;
  TileEpilogue finish;
  finish.kind = p.epilogue;
  finish.c_stride = static_cast<size_t>(units.end - units.first) * blocks_each * kBlockColumns;
  finish.out_dtype = p.out_dtype;
  finish.out_stride = weights.n_outputs();
  for (int row = first_row; row < end_row; row += kTileRows) {
    finish.n_rows = std::min(kTileRows, end_row - row);
    MultiplyTile(job, units, row, finish.n_rows, worker);
    auto* out = static_cast<uint8_t*>(p.out) + row * finish.out_stride * SizeOf(p.out_dtype);
    // Gate and up take turns, all else lies side by side.
    const int step = weights.swiglu() ? 1 : units.end - units.first;
    for (int unit = units.first; unit < units.end; unit += step) {
      finish.c = tile + (unit - units.first) * blocks_each * kBlockColumns;
      finish.c_up = finish.c + kBlockColumns;
      finish.n_columns = std::min(step * kBlockColumns, weights.n_outputs() - unit * kBlockColumns);
      finish.out = out + unit * kBlockColumns * SizeOf(p.out_dtype);
      FinishTile(finish);
    }
  }
}

GemmImpl::Job GemmImpl::MakeJob(const PackedWeights& weights, int n_rows) {
  Job job;
  job.weights = &weights;
  if (weights.dtype() == DType::kBF16) {
    job.kernel = kernels_.bf16;
    if (kernels_.bf16_blocks_at_once != nullptr) job.blocks_at_once = kernels_.bf16_blocks_at_once(n_rows);
    return job;
  }
  job.kernel = kernels_.f32;
  if (n_rows < kOnednnRows) return job;
  for (int i = 0; i < kTileRows / kRowStep; ++i) {
    job.onednn[i] =
        onednn_.Find((i + 1) * kRowStep, weights.k_padded(), (weights.swiglu() ? 2 : 1) * kBlockColumns);
  }
  return job;
}

// Waiting workers read what they will multiply next. `order` is what is multiplied now.
void GemmImpl::SetReadAhead(WeightOrder* order) {
  if (last_order_ != nullptr && last_order_->next != order) {
    last_order_->next = order;
    ++n_order_changes_;
  }
  last_order_ = order;
  if (std::exchange(order->ahead_of, n_order_changes_) != n_order_changes_) {
    order->ahead.assign(pool_->n_threads(), {});
    for (int worker = 0; worker < pool_->n_threads(); ++worker) {
      size_t left = kReadAheadBytes;
      const WeightOrder* next = order->next;
      for (ThreadPool::Bytes& bytes : order->ahead[worker]) {
        if (next == nullptr || left == 0) break;
        const uint8_t* at = next->data + pool_->FirstOf(next->n_units, worker) * next->unit_bytes;
        const uint8_t* end = next->data + pool_->FirstOf(next->n_units, worker + 1) * next->unit_bytes;
        bytes = {at, at + std::min(left, static_cast<size_t>(end - at))};
        left -= static_cast<size_t>(bytes.end - bytes.at);
        next = next->next;
      }
    }
  }
  pool_->SetReadAhead(order->ahead.data());
}

void GemmImpl::Project(const ProjectParams& p) {
  const auto& weights = static_cast<const PackedWeights&>(*p.weight);
  T6_CHECK(weights.swiglu() == (p.epilogue == Epilogue::kSwiGlu), "n = {}, k = {}", weights.n(), weights.k());
  T6_CHECK(p.in_dtype == DType::kF32 || (p.in_dtype == weights.dtype() && !p.norm.enabled), "{} into {}",
           NameOf(p.in_dtype), NameOf(weights.dtype()));
  if (p.n_rows == 0) return;
  const Status reserved =
      Reserve(p.n_rows, weights.k(), weights.n());  // nothing, when Reserve was asked for enough
  T6_CHECK(reserved.ok(), "{}", MessageOf(reserved));
  Job job = MakeJob(weights, p.n_rows);
  ++n_products_;
  // oneDNN's products read whole steps of rows.
  const int n_rows_read = p.n_rows < kOnednnRows ? p.n_rows : RoundUp(p.n_rows, kRowStep);
  if (p.in_dtype == DType::kBF16 && p.row_index == nullptr && weights.k() == weights.k_padded()) {
    job.rows = static_cast<const uint8_t*>(p.in);
  } else if (p.n_rows > 1 && n_rows_read * weights.k_padded() > kOwnRowsWork) {
    PrepareAllRows(p);
    job.rows = prepared_.data();
  }
  // Blocks alone keep a few workers busy; many workers need the rows cut too.
  const int n_units = weights.n_units();
  const int wanted = std::max(1, 3 * pool_->n_threads() / n_units);
  const int n_chunks = std::min(wanted, (p.n_rows + kTileRows / 2 - 1) / (kTileRows / 2));
  const int chunk = RoundUp((p.n_rows + n_chunks - 1) / n_chunks, kRowStep);
  SetReadAhead(weights.order());
  // A last block of few columns is a unit that costs little: it stands alone.
  const int units_at_once = n_chunks > 1 ? 1 : std::max(1, job.blocks_at_once / (weights.swiglu() ? 2 : 1));
  const bool tail = weights.n_outputs() % kBlockColumns != 0 && n_units > 1 && n_chunks == 1;
  const int n_whole = n_units - (tail ? 1 : 0);
  job.n_shared = n_whole;
  pool_->RunSticky(n_whole * n_chunks, units_at_once, [&](int first, int end, int worker) {
    const int first_row = first % n_chunks * chunk;
    const Units units{first / n_chunks, (end - 1) / n_chunks + 1};
    if (Own& own = own_[worker]; job.rows == nullptr && own.rows_of != n_products_) {
      PrepareRows(p, 0, p.n_rows, own.rows.data());
      own.rows_of = n_products_;
    }
    ProjectUnits(p, job, units, first_row, std::min(p.n_rows, first_row + chunk), worker);
    if (tail && units.end == n_whole) ProjectUnits(p, job, {n_whole, n_units}, 0, p.n_rows, worker);
  });
}

}  // namespace

std::unique_ptr<Gemm> Gemm::Make(ThreadPool* pool) { return std::make_unique<GemmImpl>(pool); }

}  // namespace t6::cpu
