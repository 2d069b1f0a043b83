#include "engine/backend/cpu/gemm.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include "engine/backend/cpu/gemm_onednn.h"
#include "engine/backend/cpu/gemm_tile.h"
#include "engine/backend/cpu/row_ops.h"
#include "engine/base/check.h"
#include "engine/tensor/buffer.h"

namespace t6::cpu {
namespace {

constexpr int kTileRows = 128;     // rows of one tile: its sums stay in the second-level cache
constexpr int kOnednnRows = 64;    // from here on float32 goes to oneDNN, where it knows our packing
constexpr int kInlineWork = 8192;  // numbers to prepare below which waking workers costs more than it saves

int RoundUp(int n, int step) { return (n + step - 1) / step * step; }

// Blocks of 64 columns, as gemm_tile.h says. With swiglu, blocks of gate and up take turns, so that one
// thread has both.
class PackedWeights final : public PackedMatrix {
 public:
  PackedWeights(int n, int k, DType dtype, bool swiglu, HostBuffer data)
      : PackedMatrix(n, k), dtype_(dtype), swiglu_(swiglu), data_(std::move(data)) {}

  DType dtype() const { return dtype_; }
  bool swiglu() const { return swiglu_; }
  int k_padded() const { return RoundUp(k(), kDepthStep); }
  int n_outputs() const { return swiglu_ ? n() / 2 : n(); }
  // A unit is what one task computes at least: a block, or one of gate and one of up.
  int n_units() const { return RoundUp(n_outputs(), kBlockColumns) / kBlockColumns; }
  size_t block_bytes() const { return static_cast<size_t>(k_padded()) * kBlockColumns * SizeOf(dtype_); }
  const uint8_t* block(int i) const { return data_.data() + i * block_bytes(); }
  uint8_t* block(int i) { return data_.data() + i * block_bytes(); }

 private:
  DType dtype_;
  bool swiglu_;
  HostBuffer data_;
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

// Work that belongs to a worker; others take from it only when their own is done. The same worker so reads
// the same weights in every step, and finds them in its own cache.
struct alignas(64) WorkerShare {
  std::atomic<int> next{0};
  int end = 0;
};

class GemmImpl final : public Gemm {
 public:
  explicit GemmImpl(ThreadPool* pool)
      : pool_(pool),
        kernels_(ChooseBlockKernels()),
        onednn_(pool->n_threads()),
        shares_(pool->n_threads()),
        tiles_(pool->n_threads()) {}

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(const std::vector<TensorView>& parts, DType compute,
                                               bool swiglu) override;
  size_t WorkspaceBytes(int max_rows, int max_k, int max_n) const override {
    return PreparedBytes(max_rows, max_k) + tiles_.size() * kTileBytes;
  }
  Status Reserve(int max_rows, int max_k, int max_n) override;
  void Project(const ProjectParams& params) override;

 private:
  static constexpr size_t kTileBytes = size_t{kTileRows} * 2 * kBlockColumns * sizeof(float);

  static size_t PreparedBytes(int rows, int k) {
    return static_cast<size_t>(RoundUp(rows, kRowStep)) * RoundUp(k, kDepthStep) * sizeof(float);
  }
  template <typename T>
  void PrepareRows(const ProjectParams& params, T* prepared);
  template <typename Item>
  void RunSticky(int n_items, const Item& item);
  // What computes one call's tiles: oneDNN's products for 32, 64, 96 and 128 rows where they are set, else
  // the kernel.
  struct Job {
    const PackedWeights* weights = nullptr;
    BlockKernel kernel = nullptr;
    std::array<const OnednnProduct*, kTileRows / kRowStep> onednn = {};
  };
  Job MakeJob(const PackedWeights& weights, int n_rows);
  void MultiplyTile(const Job& job, int unit, int row, int n_rows, float* tile, int worker) const;
  void ProjectUnit(const ProjectParams& params, const Job& job, int unit, int first_row, int end_row,
                   int worker) const;

  ThreadPool* pool_;
  BlockKernels kernels_;
  OnednnProducts onednn_;
  std::vector<WorkerShare> shares_;
  std::vector<HostBuffer> tiles_;  // one a worker
  HostBuffer prepared_;            // the input rows: normalised, rounded, padded
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
  T6_ASSIGN_OR_RETURN(HostBuffer data, HostBuffer::Allocate(n_blocks * block_bytes));
  auto packed = std::make_unique<PackedWeights>(n, k, compute, swiglu, std::move(data));
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
  for (HostBuffer& tile : tiles_) {
    if (tile.size() == 0) {
      T6_ASSIGN_OR_RETURN(tile, HostBuffer::Allocate(kTileBytes));
    }
  }
  return absl::OkStatus();
}

template <typename T>
void GemmImpl::PrepareRows(const ProjectParams& p, T* prepared) {
  const int k = p.weight->k();
  const int k_padded = RoundUp(k, kDepthStep);
  const auto prepare = [&](int first, int end) {
    for (int r = first; r < end; ++r) {
      const size_t source = p.row_index != nullptr ? p.row_index[r] : r;
      PrepareRow(static_cast<const float*>(p.in) + source * k, k, k_padded, p.norm,
                 prepared + static_cast<size_t>(r) * k_padded);
    }
  };
  const int rows_per_task = std::max(1, kInlineWork / k_padded);
  if (p.n_rows <= 2 * rows_per_task) return prepare(0, p.n_rows);
  pool_->Run((p.n_rows + rows_per_task - 1) / rows_per_task,
             [&](int i, int) { prepare(i * rows_per_task, std::min(p.n_rows, (i + 1) * rows_per_task)); });
}

template <typename Item>
void GemmImpl::RunSticky(int n_items, const Item& item) {
  const int n_workers = pool_->n_threads();
  for (int w = 0; w < n_workers; ++w) {
    shares_[w].next.store(static_cast<int>(int64_t{n_items} * w / n_workers), std::memory_order_relaxed);
    shares_[w].end = static_cast<int>(int64_t{n_items} * (w + 1) / n_workers);
  }
  pool_->Run(std::min(n_workers, n_items), [&](int, int worker) {
    for (int i = 0; i < n_workers; ++i) {
      WorkerShare& share = shares_[(worker + i) % n_workers];
      while (true) {
        const int next = share.next.fetch_add(1, std::memory_order_relaxed);
        if (next >= share.end) break;
        item(next, worker);
      }
    }
  });
}

void GemmImpl::MultiplyTile(const Job& job, int unit, int row, int n_rows, float* tile, int worker) const {
  const PackedWeights& weights = *job.weights;
  const int n_blocks = weights.swiglu() ? 2 : 1;
  const uint8_t* a =
      prepared_.data() + static_cast<size_t>(row) * weights.k_padded() * SizeOf(weights.dtype());
  if (const OnednnProduct* product = job.onednn[(n_rows - 1) / kRowStep]) {
    product->Run(reinterpret_cast<const float*>(a), weights.block(unit * n_blocks), tile, worker);
    return;
  }
  BlockProduct product;
  product.a = a;
  product.a_stride = weights.k_padded();
  product.n_rows = n_rows;
  product.k_padded = weights.k_padded();
  product.c_stride = static_cast<size_t>(n_blocks) * kBlockColumns;
  for (int block = 0; block < n_blocks; ++block) {
    product.b = weights.block(unit * n_blocks + block);
    product.c = tile + block * kBlockColumns;
    job.kernel(product);
  }
}

void GemmImpl::ProjectUnit(const ProjectParams& p, const Job& job, int unit, int first_row, int end_row,
                           int worker) const {
  const PackedWeights& weights = *job.weights;
  float* tile = tiles_[worker].as<float>();
  TileEpilogue finish;
  finish.kind = p.epilogue;
  finish.c = tile;
  finish.c_up = tile + kBlockColumns;
  finish.c_stride = static_cast<size_t>(weights.swiglu() ? 2 : 1) * kBlockColumns;
  finish.n_columns = std::min(kBlockColumns, weights.n_outputs() - unit * kBlockColumns);
  finish.out_stride = weights.n_outputs();
  for (int row = first_row; row < end_row; row += kTileRows) {
    finish.n_rows = std::min(kTileRows, end_row - row);
    MultiplyTile(job, unit, row, finish.n_rows, tile, worker);
    finish.out = static_cast<float*>(p.out) + row * finish.out_stride + unit * kBlockColumns;
    FinishTile(finish);
  }
}

GemmImpl::Job GemmImpl::MakeJob(const PackedWeights& weights, int n_rows) {
  Job job;
  job.weights = &weights;
  if (weights.dtype() == DType::kBF16) {
    job.kernel = kernels_.bf16;
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

void GemmImpl::Project(const ProjectParams& p) {
  const auto& weights = static_cast<const PackedWeights&>(*p.weight);
  T6_CHECK(weights.swiglu() == (p.epilogue == Epilogue::kSwiGlu), "n = {}, k = {}", weights.n(), weights.k());
  if (p.n_rows == 0) return;
  const Status reserved =
      Reserve(p.n_rows, weights.k(), weights.n());  // nothing, when Reserve was asked for enough
  T6_CHECK(reserved.ok(), "{}", MessageOf(reserved));
  if (weights.dtype() == DType::kF32) {
    PrepareRows(p, prepared_.as<float>());
  } else {
    PrepareRows(p, prepared_.as<bf16>());
  }
  const Job job = MakeJob(weights, p.n_rows);
  // Blocks alone keep a few workers busy; many workers need the rows cut too.
  const int n_units = weights.n_units();
  const int wanted = std::max(1, 3 * pool_->n_threads() / n_units);
  const int n_chunks = std::min(wanted, (p.n_rows + kTileRows / 2 - 1) / (kTileRows / 2));
  const int chunk = RoundUp((p.n_rows + n_chunks - 1) / n_chunks, kRowStep);
  RunSticky(n_units * n_chunks, [&](int item, int worker) {
    const int first_row = item % n_chunks * chunk;
    ProjectUnit(p, job, item / n_chunks, first_row, std::min(p.n_rows, first_row + chunk), worker);
  });
}

}  // namespace

std::unique_ptr<Gemm> Gemm::Make(ThreadPool* pool) { return std::make_unique<GemmImpl>(pool); }

}  // namespace t6::cpu
