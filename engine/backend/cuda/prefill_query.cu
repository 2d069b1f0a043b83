#include <algorithm>

#include "engine/backend/cuda/decode_newest.cuh"
#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/prefill_attention.h"
#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kDim = 64;
constexpr int kRows = 4;             // of a block: neighbours, whose tokens lie side by side in a page
constexpr int kMinBlocks = 2 * 132;  // of the grid, if there are as many heads
constexpr float kLog2E = 1.4426950408889634f;

__device__ float Bf16(float x) { return __bfloat162float(__float2bfloat16(x)); }

__device__ void Begin(const QueryCall& call) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  if (blockIdx.x > 0 || blockIdx.y > 0) return;
  for (int i = threadIdx.x; i < kMaxPrefillPasses; i += kThreads) call.counters[i] = 0;
}

// kRanks: at least R_Q; kRank: at least R_K = R_V, or 0 where nothing is stored. B beyond is zeros.
template <int kRanks, int kRank>
struct FormTraits {
  static constexpr int kAll = kRanks + 2 * kRank;
  // A lane's numbers of a row, so many that its part of every B fits its registers.
  static constexpr int kNumbers = kAll <= 10 ? 8 : kAll <= 20 ? 4 : 2;
  static constexpr int kLanes = kDim / kNumbers;     // that share a row
  static constexpr int kWarpRows = 32 / kLanes;      // of a warp at once
  static constexpr int kGroups = kRows / kWarpRows;  // of warps with the same rows
  static constexpr int kFormedNumbers = kRows * (kAll + 1) * kDim;
};

// Numbers between the projected rows in shared memory: a warp's rows in different banks.
__host__ __device__ inline int ProjectedStride(int row_elements) { return (row_elements + 31) / 32 * 32 + 8; }

// A block's rows in shared memory: every B [kAll][d], rotated (B_Q with the logits' factors, B_K and B_V as
// pages have them), the angles, and the rows as they were projected.
template <int kRanks, int kRank>
struct FormedRows {
  using T = FormTraits<kRanks, kRank>;
  const QueryCall& call;
  float* const formed;
  const int row_elements;
  const int first_row, first_head, n_heads;  // the block's

  __device__ FormedRows(const QueryCall& c, float* shared, int elements, int split_heads)
      : call(c),
        formed(shared),
        row_elements(elements),
        first_row(blockIdx.x * kRows),
        first_head(blockIdx.y * split_heads),
        n_heads(min(split_heads, c.shape.n_heads - first_head)) {}

  __device__ bool Exists(int k) const { return first_row + k < call.n_rows; }
  __device__ float* B(int k, int r) const { return formed + (k * T::kAll + r) * kDim; }
  __device__ float* Cos(int k) const { return formed + (kRows * T::kAll + k) * kDim; }
  __device__ float* Sin(int k) const { return Cos(k) + kDim / 2; }
  __device__ float* Projected(int k) const {
    return formed + T::kFormedNumbers + k * ProjectedStride(row_elements);
  }
  // Of a projected row: where A of the keys begins, or of the values. B is behind it.
  __device__ int Stored(bool is_value) const {
    const DecodeShape& shape = call.shape;
    return (shape.rank_q + (is_value ? shape.rank : 0)) * (shape.n_heads + kDim);
  }

  // Everything asked for at once.
  __device__ void Load() const {
    const int stride = call.qkv_stride > 0 ? call.qkv_stride : row_elements;
    const bool vectors = stride % 4 == 0 && reinterpret_cast<uintptr_t>(call.qkv) % 16 == 0;
    for (int k = 0; k < kRows; ++k) {
      const float* from = call.qkv + static_cast<int64_t>(first_row + k) * stride;
      float* to = Projected(k);
      if (!Exists(k)) {
        for (int i = threadIdx.x; i < row_elements; i += kThreads) to[i] = 0.0f;
      } else if (vectors) {
        for (int i = threadIdx.x; i < (row_elements + 3) / 4; i += kThreads) {
          ptx::CopyChunk(ptx::SharedAddress(to + 4 * i), from + 4 * i);
        }
      } else {
        for (int i = threadIdx.x; i < row_elements; i += kThreads) to[i] = from[i];
      }
    }
    const int half = call.shape.rotary_dim / 2;
    for (int i = threadIdx.x; i < kRows * kDim / 2; i += kThreads) {
      const int k = i / (kDim / 2), pair = i % (kDim / 2);
      if (!Exists(k) || pair >= half) continue;
      const int64_t at = static_cast<int64_t>(call.positions[first_row + k]) * half + pair;
      Cos(k)[pair] = call.cos[at], Sin(k)[pair] = call.sin[at];
    }
    ptx::WaitForChunks();
    __syncthreads();
  }

  __device__ void FormB() const {
    const DecodeShape& shape = call.shape;
    const int half = shape.rotary_dim / 2;
#pragma unroll 4
    for (int item = threadIdx.x; item < kRows * T::kAll * kDim; item += kThreads) {
      const int i = item % kDim, r = item / kDim % T::kAll, k = item / kDim / T::kAll;
      const bool is_query = r < kRanks;
      const bool is_value = r >= kRanks + kRank;
      const int own = is_query ? r : r - kRanks - (is_value ? kRank : 0);
      const int from =
          is_query ? shape.rank_q * shape.n_heads : Stored(is_value) + shape.rank * shape.n_heads;
      float value = 0.0f;
      if (Exists(k) && own < (is_query ? shape.rank_q : shape.rank)) {
        const float* x = Projected(k) + from + own * kDim;
        value = is_value ? x[i] : Rotated(x, i, half, Cos(k), Sin(k));
      }
      B(k, r)[i] = is_query ? value * (shape.logit_scale * kLog2E) : Bf16(value);
    }
    __syncthreads();
  }

  // Into the pages: A_K and A_V of the block's heads, tokens side by side; the first split B_K and B_V.
  __device__ void Store(int warp, int lane) const {
    const DecodeShape& shape = call.shape;
    int slots[kRows];
    bool together = true;  // in one run of four tokens of a page
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      slots[k] = Exists(k) ? call.slots[first_row + k] : -1;
      together = together && slots[k] == slots[0] + k;
    }
    together = together && slots[0] >= 0 && slots[0] % kRows == 0;
    const int64_t half_numbers = static_cast<int64_t>(shape.rank) * 64 * (shape.n_heads + kDim);
    const auto half_of = [&](int slot, bool is_value) {
      return static_cast<__nv_bfloat16*>(call.pages) + (slot / 64 * 2 + is_value) * half_numbers;
    };
    const int of_factor = n_heads * shape.rank;
    for (int i = threadIdx.x; i < 2 * of_factor; i += kThreads) {
      const bool is_value = i >= of_factor;
      const int number = i - (is_value ? of_factor : 0), head = number / shape.rank, r = number % shape.rank;
      const int from = Stored(is_value) + first_head * shape.rank + number;
      const int to = shape.rank * 64 * kDim + (r * shape.n_heads + first_head + head) * 64;
      if (together) {
        *reinterpret_cast<uint2*>(half_of(slots[0], is_value) + to + slots[0] % 64) =
            make_uint2(ptx::PackBf16(Projected(0)[from], Projected(1)[from]),
                       ptx::PackBf16(Projected(2)[from], Projected(3)[from]));
      } else {
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          if (slots[k] < 0) continue;
          half_of(slots[k], is_value)[to + slots[k] % 64] = __float2bfloat16(Projected(k)[from]);
        }
      }
    }
    if (blockIdx.y > 0) return;
    for (int item = warp; item < kRows * 2 * shape.rank; item += kWarps) {
      const int k = item / (2 * shape.rank), own = item % shape.rank;
      const bool is_value = item % (2 * shape.rank) >= shape.rank;
      const int slot = Exists(k) ? call.slots[first_row + k] : -1;
      if (slot < 0) continue;
      const float* b = B(k, kRanks + (is_value ? kRank : 0) + own) + 2 * lane;
      reinterpret_cast<uint32_t*>(half_of(slot, is_value) + (own * 64 + slot % 64) * kDim)[lane] =
          ptx::PackBf16(b[0], b[1]);
    }
  }
};

// kNumbers of the sum of kTerms rank-one terms, bfloat16. Scalars are of one head; those of terms beyond the
// rank are another's, and their B zero.
template <bool kRounds, int kTerms, int kNumbers>
__device__ void FormInto(void* to, const float* scalars, const float (&b)[kTerms][kNumbers]) {
  float x[kNumbers] = {};
#pragma unroll
  for (int r = 0; r < kTerms; ++r) {
    const float scalar = kRounds ? Bf16(scalars[r]) : scalars[r];
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) x[i] = fmaf(scalar, b[r][i], x[i]);
  }
  uint32_t words[kNumbers / 2];
#pragma unroll
  for (int i = 0; i < kNumbers / 2; ++i) words[i] = ptx::PackBf16(x[2 * i], x[2 * i + 1]);
  if constexpr (kNumbers == 8) {
    *static_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else if constexpr (kNumbers == 4) {
    *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else {
    *static_cast<uint32_t*>(to) = words[0];
  }
}

template <int kTerms, int kNumbers>
__device__ void LoadTerms(const float* from, float (&b)[kTerms][kNumbers]) {
#pragma unroll
  for (int r = 0; r < kTerms; ++r) {
#pragma unroll
    for (int i = 0; i < kNumbers; i += 2) {
      const float2 x = *reinterpret_cast<const float2*>(from + r * kDim + i);
      b[r][i] = x.x, b[r][i + 1] = x.y;
    }
  }
}

// Rotation is linear, so B_Q is rotated, once, instead of every head's query. A lane has some numbers of a
// row, of every head; its part of the row's B stays in registers. Keys and values come from what the pages
// get, so that they are those that other steps expand from the pages.
template <int kRanks, int kRank>
__global__ void __launch_bounds__(kThreads, FormTraits<kRanks, kRank>::kAll <= 20 ? 2 : 1)
    FormRows(const __grid_constant__ QueryCall call, const int row_elements, const int split_heads) {
  using T = FormTraits<kRanks, kRank>;
  constexpr int kNumbers = T::kNumbers;
  extern __shared__ __align__(16) float shared[];
  const FormedRows<kRanks, kRank> rows(call, shared, row_elements, split_heads);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Begin(call);
  rows.Load();
  rows.FormB();
  if constexpr (kRank > 0) rows.Store(warp, lane);

  const int k = warp % T::kGroups * T::kWarpRows + lane / T::kLanes, at = lane % T::kLanes * kNumbers;
  const int row = rows.first_row + k;
  float query[kRanks][kNumbers], key[kRank > 0 ? kRank : 1][kNumbers], value[kRank > 0 ? kRank : 1][kNumbers];
  LoadTerms(rows.B(k, 0) + at, query);
  int token = -1;  // of the scratch
  if constexpr (kRank > 0) {
    LoadTerms(rows.B(k, kRanks) + at, key);
    LoadTerms(rows.B(k, kRanks + kRank) + at, value);
    if (call.scratch_tokens != nullptr && row < call.n_rows + call.n_zeros) token = call.scratch_tokens[row];
  }
  const float *projected = rows.Projected(k), *keys = projected + rows.Stored(false),
              *values = projected + rows.Stored(true);
  for (int i = warp / T::kGroups; i < rows.n_heads; i += kWarps / T::kGroups) {
    const int head = rows.first_head + i;
    if (row < call.n_rows) {
      FormInto<false>(
          static_cast<__nv_bfloat16*>(call.queries) + (int64_t{head} * call.query_rows + row) * kDim + at,
          projected + head * call.shape.rank_q, query);
    }
    if constexpr (kRank > 0) {
      if (token < 0 || head >= call.n_heads) continue;
      const int64_t to = (int64_t{head} * call.n_scratch_tokens + token) * kDim + at;
      FormInto<true>(static_cast<__nv_bfloat16*>(call.keys) + to, keys + head * call.shape.rank, key);
      FormInto<true>(static_cast<__nv_bfloat16*>(call.values) + to, values + head * call.shape.rank, value);
    }
  }
}

// The projection gave the queries themselves (R_Q 0): a warp a head, a block a row.
__global__ void __launch_bounds__(kThreads)
    RotateQueries(const __grid_constant__ QueryCall call, const int row_elements, const int /*split_heads*/) {
  const DecodeShape& shape = call.shape;
  const int row = blockIdx.x, half = shape.rotary_dim / 2, pair = threadIdx.x % 32;
  const int stride = call.qkv_stride > 0 ? call.qkv_stride : row_elements;
  const float scale = shape.logit_scale * kLog2E;
  Begin(call);
  const int64_t angle = static_cast<int64_t>(call.positions[row]) * half;
  const float *cos = call.cos + angle, *sin = call.sin + angle;
  for (int head = threadIdx.x / 32; head < shape.n_heads; head += kWarps) {
    const float* q = call.qkv + static_cast<int64_t>(row) * stride + head * kDim;
    reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(call.queries) +
                                (static_cast<int64_t>(head) * call.query_rows + row) * kDim)[pair] =
        ptx::PackBf16(Rotated(q, 2 * pair, half, cos, sin) * scale,
                      Rotated(q, 2 * pair + 1, half, cos, sin) * scale);
  }
}

using QueryKernel = void (*)(QueryCall, int, int);

cudaError_t Launch(QueryKernel kernel, const QueryCall& call, dim3 grid, int shared, int split_heads,
                   cudaStream_t stream) {
  const auto* pointer = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaFuncSetAttribute(pointer, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error == cudaSuccess) error = PreferShared(pointer);
  if (error != cudaSuccess) return error;
  const OverlappedLaunch launch(grid, kThreads, shared, stream, true);
  return cudaLaunchKernelEx(launch.config(), kernel, call, call.shape.qkv_elements(), split_heads);
}

// Heads are split where rows alone leave multiprocessors without a block.
template <int kRanks, int kRank>
cudaError_t LaunchFormed(const QueryCall& call, cudaStream_t stream) {
  using T = FormTraits<kRanks, kRank>;
  const int h = call.shape.n_heads, blocks = (call.n_rows + call.n_zeros + kRows - 1) / kRows;
  const int splits = std::clamp(kMinBlocks / blocks, 1, (h + kWarps - 1) / kWarps);
  const int split_heads = (h + splits - 1) / splits;
  const int shared = (T::kFormedNumbers + kRows * ProjectedStride(call.shape.qkv_elements())) *
                     static_cast<int>(sizeof(float));
  return Launch(&FormRows<kRanks, kRank>, call, dim3(blocks, (h + split_heads - 1) / split_heads), shared,
                split_heads, stream);
}

template <int kRanks>
cudaError_t LaunchRanks(const QueryCall& call, cudaStream_t stream) {
  if (call.pages == nullptr) return LaunchFormed<kRanks, 0>(call, stream);
  switch (call.shape.rank) {
    case 1:
      return LaunchFormed<kRanks, 1>(call, stream);
    case 2:
      return LaunchFormed<kRanks, 2>(call, stream);
    default:
      return call.shape.rank <= 4 ? LaunchFormed<kRanks, 4>(call, stream) : cudaErrorNotSupported;
  }
}

}  // namespace

cudaError_t LaunchQueries(const QueryCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  const DecodeShape& shape = call.shape;
  if (shape.head_dim != kDim || shape.rank_q > kMaxQueryRank) return cudaErrorNotSupported;
  if (shape.rank_q == 0) {
    if (call.pages != nullptr) return cudaErrorNotSupported;
    return Launch(&RotateQueries, call, dim3(call.n_rows), 0, shape.n_heads, stream);
  }
  if (shape.rank_q <= 6) return LaunchRanks<6>(call, stream);
  return shape.rank_q <= 16 ? LaunchRanks<16>(call, stream) : LaunchRanks<kMaxQueryRank>(call, stream);
}

}  // namespace t6::cuda
