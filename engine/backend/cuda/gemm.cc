#include "engine/backend/cuda/gemm.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "engine/base/check.h"

namespace t6::cuda {
namespace {

constexpr int kSmallestTunedRows = 32;

int LargestK(const AttentionSpec& spec, const ModelSizes& sizes) {
  return RoundUp64(std::max({sizes.width, sizes.mlp_width, spec.n_heads * spec.head_dim}));
}
size_t PreparedBytes(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes) {
  return static_cast<size_t>(std::max(limits.max_rows, limits.max_outputs)) * LargestK(spec, sizes) *
         SizeOf(sizes.compute);
}
size_t GateUpBytes(const StepLimits& limits, const ModelSizes& sizes) {
  return static_cast<size_t>(limits.max_rows) * 2 * RoundUp64(sizes.mlp_width) * SizeOf(sizes.compute);
}
size_t StatRowBytes(const ModelSizes& sizes) {
  return static_cast<size_t>(kMaxSplitRows) * RoundUp64(sizes.width) * SizeOf(DType::kBF16);
}
// No less than SkinnyPieces on any GPU, and SplitPieces.
size_t StatSquareBytes(const ModelSizes& sizes) {
  return static_cast<size_t>(kMaxSplitRows) * sizes.width * sizeof(float);
}

}  // namespace

StatusOr<std::unique_ptr<Gemm>> Gemm::Make(cudaStream_t stream, const Device& device, StepProgram* program) {
  T6_ASSIGN_OR_RETURN(std::unique_ptr<Matmul> matmul, Matmul::Make(stream));
  return std::unique_ptr<Gemm>(new Gemm(std::move(matmul), stream, device, program));
}

StatusOr<std::unique_ptr<PackedMatrix>> Gemm::Pack(const std::vector<TensorView>& parts, DType compute,
                                                   bool swiglu) {
  T6_CHECK(!parts.empty() && (!swiglu || parts.size() == 2));
  const auto k = static_cast<int>(parts[0].shape[1]);
  int64_t n = 0;
  for (const TensorView& part : parts) n += part.shape[0];
  DeviceMemory data;
  auto packed = std::make_unique<PackedWeights>(static_cast<int>(n), k, compute, swiglu, DeviceMemory());
  T6_RETURN_IF_ERROR(data.Allocate(packed->bytes()));
  T6_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(data.as<void>(), 0, packed->bytes(), stream_));
  int64_t row = 0;
  for (const TensorView& part : parts) {
    if (staging_.size() < part.n_bytes()) T6_RETURN_IF_ERROR(staging_.Allocate(part.n_bytes()));
    T6_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(staging_.as<void>(), part.data, part.n_bytes(), cudaMemcpyHostToDevice, stream_));
    PackRowsCall call;
    call.in = staging_.as<void>(), call.in_dtype = part.dtype;
    call.n_rows = part.shape[0], call.k = k;
    call.out = data.as<uint8_t>() + row * packed->stride() * SizeOf(compute);
    call.out_dtype = compute, call.out_stride = packed->stride();
    T6_RETURN_IF_CUDA_ERROR(LaunchPackRows(call, stream_));
    row += swiglu ? packed->padded_outputs() : part.shape[0];
  }
  T6_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  packed = std::make_unique<PackedWeights>(static_cast<int>(n), k, compute, swiglu, std::move(data));
  packed_.push_back(packed.get());
  return std::unique_ptr<PackedMatrix>(std::move(packed));
}

size_t Gemm::WorkspaceBytes(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes) {
  return PreparedBytes(limits, spec, sizes) + GateUpBytes(limits, sizes) + StatRowBytes(sizes) +
         StatSquareBytes(sizes) + Matmul::kWorkspaceBytes;
}

Status Gemm::Reserve(const StepLimits& limits, const AttentionSpec& spec, const ModelSizes& sizes) {
  staging_ = DeviceMemory();
  compute_ = sizes.compute, width_ = sizes.width, vocab_ = sizes.vocab;
  qkv_ = spec.qkv_elements();
  T6_RETURN_IF_ERROR(matmul_->Reserve());
  prepared_bytes_ = PreparedBytes(limits, spec, sizes);
  T6_RETURN_IF_ERROR(prepared_.Allocate(prepared_bytes_));
  T6_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(prepared_.as<void>(), 0, prepared_bytes_, stream_));
  T6_RETURN_IF_ERROR(gate_up_.Allocate(GateUpBytes(limits, sizes)));
  T6_RETURN_IF_ERROR(stat_rows_.Allocate(StatRowBytes(sizes)));
  T6_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(stat_rows_.as<void>(), 0, StatRowBytes(sizes), stream_));
  T6_RETURN_IF_ERROR(stat_squares_.Allocate(StatSquareBytes(sizes)));
  stats_ = {stat_rows_.as<void>(), RoundUp64(sizes.width), stat_squares_.as<float>(), 0};
  stats_of_ = nullptr;
  return Tune(limits);
}

// Shapes of the layers (all alike) and of the head, at every power of two of rows.
Status Gemm::Tune(const StepLimits& limits) {
  std::map<std::tuple<int, int, bool>, std::vector<const PackedWeights*>> alike;
  for (const PackedWeights* w : packed_) {
    if (w->dtype() == compute_) alike[{w->padded_n(), w->k(), w->swiglu()}].push_back(w);
  }
  size_t out_bytes = 0;
  const auto most_rows = [&](const PackedWeights& w) {
    return w.n() == vocab_ ? limits.max_outputs : limits.max_rows;
  };
  for (const auto& [shape, weights] : alike) {
    out_bytes = std::max(
        out_bytes, static_cast<size_t>(most_rows(*weights[0])) * weights[0]->padded_n() * sizeof(float));
  }
  DeviceMemory out;
  if (!out.Allocate(out_bytes).ok()) return absl::OkStatus();  // untuned: the library's first proposal
  T6_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(out.as<void>(), 0, out_bytes, stream_));
  for (const auto& [shape, weights] : alike) {
    const PackedWeights& w = *weights[0];
    // Any real numbers do for the other factor, but for zeros, which multiply faster.
    const size_t bytes = std::min(prepared_bytes_, w.bytes());
    T6_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(prepared_.as<void>(), w.data(), bytes, cudaMemcpyDeviceToDevice, stream_));
    const bool adds = w.n() == width_;
    const Epilogue epilogue = w.swiglu() ? Epilogue::kSwiGlu : adds ? Epilogue::kAdd : Epilogue::kStore;
    for (int rows = kSmallestTunedRows; rows <= most_rows(w); rows *= 2) {
      if (!IsFew(w, rows, epilogue)) T6_RETURN_IF_ERROR(TuneShape(weights, rows, adds, out.as<void>()));
    }
  }
  T6_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(prepared_.as<void>(), 0, prepared_bytes_, stream_));
  T6_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  return absl::OkStatus();
}

Status Gemm::TuneShape(const std::vector<const PackedWeights*>& alike, int n_rows, bool adds, void* out) {
  const PackedWeights& w = *alike[0];
  const int n = w.swiglu() || w.n() == qkv_ ? w.padded_n() : w.n();
  MatmulCall call;
  call.shape = {.m = n_rows,
                .n = n,
                .k = w.stride(),
                .in_stride = w.stride(),
                .weight_stride = w.stride(),
                .out_stride = n,
                .in_dtype = w.dtype(),
                .out_dtype = w.swiglu() ? w.dtype() : DType::kF32,
                .adds = adds};
  call.in = prepared_.as<void>(), call.out = out;
  return matmul_->Tune([&](int i) {
    call.weight = alike[i % alike.size()]->data();
    return call;
  });
}

RowStats Gemm::NewStats(const float* x, bool splits) {
  stats_of_ = x;
  stats_.n_pieces = splits ? SplitPieces(width_) : SkinnyPieces(width_, n_sms_);
  return stats_;
}

RowStats Gemm::StatsFor(const float* x, int n_rows) {
  stats_of_ = nullptr;
  return compute_ == DType::kBF16 && n_rows <= max_few_rows_ ? NewStats(x, Splits(n_rows)) : RowStats();
}

Status Gemm::LaunchCollected() {
  if (Collects()) T6_RETURN_IF_CUDA_ERROR(program_->Launch());
  return absl::OkStatus();
}

bool Gemm::HasStats(const ProjectParams& p) const {
  return stats_of_ != nullptr && p.in == stats_of_ && p.norm.enabled && p.norm.weight == nullptr;
}

StatusOr<Gemm::Rows> Gemm::Prepare(const ProjectParams& p, const PackedWeights& w, int n_rows) {
  const int stride = p.in_stride > 0 ? p.in_stride : w.k();
  const int aligned = 16 / static_cast<int>(SizeOf(w.dtype()));
  const bool plain = !p.norm.enabled && p.row_index == nullptr && p.in_dtype == w.dtype();
  // A stride beyond k is activation_stride(), with zeros behind k.
  const int k = std::min(stride, w.stride());
  if (plain && stride % aligned == 0 && k % aligned == 0) return Rows{p.in, stride, k};
  NormRowsCall call;
  call.in = p.in, call.in_dtype = p.in_dtype, call.in_stride = stride, call.row_index = p.row_index;
  call.n_rows = n_rows, call.k = w.k(), call.norm = p.norm;
  call.out = prepared_.as<void>(), call.out_dtype = w.dtype(), call.out_stride = w.stride();
  T6_RETURN_IF_ERROR(LaunchCollected());
  T6_RETURN_IF_CUDA_ERROR(LaunchNormRows(call, stream_));
  return Rows{call.out, w.stride(), w.stride()};
}

bool Gemm::IsFew(const PackedWeights& w, int n_rows, Epilogue epilogue) const {
  if (n_rows > max_few_rows_ || w.dtype() != DType::kBF16) return false;
  if (epilogue == Epilogue::kAdd && w.n() != width_) return false;  // stats are of rows of this width
  return n_rows <= kMaxSkinnyRows || SplitShape::Suits(w.padded_n(), n_sms_);
}

Status Gemm::ProjectFew(const ProjectParams& p, const PackedWeights& w, int n_rows) {
  const bool splits = Splits(n_rows) && SplitShape::Suits(w.padded_n(), n_sms_);
  SkinnyCall call;
  call.weight = w.data(), call.n = w.n_outputs(), call.k_stride = w.stride();
  call.up_row = w.padded_outputs();
  call.n_rows = n_rows, call.epilogue = p.epilogue, call.out = p.out;
  call.out_stride = p.out_stride > 0 ? p.out_stride : w.n_outputs();
  if (HasStats(p) && !(splits && p.row_index != nullptr)) {
    call.in = stats_.rows, call.in_stride = call.k = stats_.stride, call.row_index = p.row_index;
    call.squares = stats_.squares, call.n_pieces = stats_.n_pieces;
    call.norm_width = w.k(), call.norm_eps = p.norm.eps;
  } else {
    T6_ASSIGN_OR_RETURN(const Rows rows, Prepare(p, w, n_rows));
    call.in = rows.data, call.in_stride = rows.stride, call.k = rows.k;
  }
  if (p.epilogue == Epilogue::kAdd) call.stats = NewStats(static_cast<const float*>(p.out), splits);
  if (splits) {
    const SplitShape shape = SplitShape::Make(w.padded_n(), w.stride(), n_sms_);
    T6_RETURN_IF_ERROR(LaunchCollected());
    T6_RETURN_IF_CUDA_ERROR(LaunchSplitProduct(call, shape, stream_));
  } else if (Collects()) {
    program_->AddProduct(call);
  } else {
    T6_RETURN_IF_CUDA_ERROR(LaunchSkinny(call, n_sms_, stream_));
  }
  return absl::OkStatus();
}

Status Gemm::ProjectMany(const ProjectParams& p, const PackedWeights& w, int n_rows) {
  T6_ASSIGN_OR_RETURN(const Rows rows, Prepare(p, w, n_rows));
  const bool swiglu = p.epilogue == Epilogue::kSwiGlu;
  // Rows with room for the padding get its zeros: the library's fast kernels want multiples of 8.
  const int n = swiglu || p.out_stride == w.padded_n() ? w.padded_n() : w.n();
  MatmulCall call;
  call.shape = {.m = n_rows,
                .n = n,
                .k = rows.k,
                .in_stride = rows.stride,
                .weight_stride = w.stride(),
                .out_stride = !swiglu && p.out_stride > 0 ? p.out_stride : n,
                .in_dtype = w.dtype(),
                .out_dtype = swiglu ? w.dtype() : p.out_dtype,
                .adds = p.epilogue == Epilogue::kAdd};
  call.in = rows.data, call.weight = w.data(), call.out = swiglu ? gate_up_.as<void>() : p.out;
  T6_RETURN_IF_ERROR(LaunchCollected());
  T6_RETURN_IF_ERROR(matmul_->Run(call));
  if (p.out == stats_of_) stats_of_ = nullptr;
  if (!swiglu) return absl::OkStatus();
  T6_RETURN_IF_CUDA_ERROR(LaunchSwiGlu({.gate_up = gate_up_.as<void>(),
                                        .dtype = w.dtype(),
                                        .n_rows = n_rows,
                                        .width = w.padded_outputs(),
                                        .out = p.out},
                                       stream_));
  return absl::OkStatus();
}

Status Gemm::Project(const ProjectParams& p, int n_rows) {
  const auto& w = static_cast<const PackedWeights&>(*p.weight);
  const bool swiglu = p.epilogue == Epilogue::kSwiGlu;
  T6_CHECK(w.swiglu() == swiglu, "n = {}, k = {}", w.n(), w.k());
  T6_CHECK(!swiglu || (p.out_dtype == w.dtype() && p.out_stride == w.padded_outputs()));
  T6_CHECK(swiglu || p.out_dtype == DType::kF32);
  if (n_rows == 0) return absl::OkStatus();
  return IsFew(w, n_rows, p.epilogue) ? ProjectFew(p, w, n_rows) : ProjectMany(p, w, n_rows);
}

}  // namespace t6::cuda
