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

// kRanks: at least R_Q, B_Q beyond is zeros; kRank: R_K = R_V, or 0 where nothing is stored.
template <int kRanks, int kRank>
struct FormTraits {
  static constexpr int kAll = kRanks + 2 * kRank;
  // A lane's numbers of a row, so many that its part of every B fits its registers.
  static constexpr int kNumbers = kAll <= 20 ? 4 : 2;
  static constexpr int kLanes = kDim / kNumbers;     // that share a row
  static constexpr int kWarpRows = 32 / kLanes;      // of a warp at once
  static constexpr int kGroups = kRows / kWarpRows;  // of warps with the same rows
  static constexpr int kFormedNumbers = kRows * (kAll + 1) * kDim;
  static constexpr int kBlocks = kAll <= 10 ? 3 : kAll <= 20 ? 2 : 1;  // of a multiprocessor
};

// A half of the page of a slot.
template <int kRank>
__device__ __nv_bfloat16* HalfOf(const QueryCall& call, int slot, bool is_value) {
  const int64_t half_numbers = int64_t{kRank} * 64 * (call.shape.n_heads + kDim);
  return static_cast<__nv_bfloat16*>(call.pages) + (slot / 64 * 2 + is_value) * half_numbers;
}

constexpr int kStoredRows = 32;  // of a block that stores A

// A_K and A_V of 32 rows into the pages, by a block of its own: a head's numbers of neighbouring tokens lie
// side by side there, and parts of a sector cost more than whole ones. A lane a row.
template <int kRank>
__device__ void StoreA(const QueryCall& call, int row_elements, float* shared, int first_row) {
  const int n = kRank * call.shape.n_heads, stride = 2 * n + 1;  // of a row: A_K, A_V
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int own = first_row + lane, slot = own < call.n_rows ? call.slots[own] : -1;
  const int from = call.qkv_stride > 0 ? call.qkv_stride : row_elements;
  const int keys = call.shape.rank_q * (call.shape.n_heads + kDim), values = keys + n + kRank * kDim;
#pragma unroll
  for (int k = 0; k < kStoredRows / kWarps; ++k) {
    const int i = warp + k * kWarps;
    const float* row = call.qkv + static_cast<int64_t>(min(first_row + i, call.n_rows - 1)) * from;
#pragma unroll 5
    for (int e = lane; e < n; e += 32) {
      shared[i * stride + e] = row[keys + e], shared[i * stride + n + e] = row[values + e];
    }
  }
  __syncthreads();
  if (slot < 0) return;
  __nv_bfloat16 *keys_to = HalfOf<kRank>(call, slot, false), *values_to = HalfOf<kRank>(call, slot, true);
#pragma unroll 4
  for (int e = warp; e < 2 * n; e += kWarps) {
    const bool is_value = e >= n;
    const int number = e - (is_value ? n : 0), head = number / kRank, r = number % kRank;
    __nv_bfloat16* to = (is_value ? values_to : keys_to) + kRank * 64 * kDim + slot % 64;
    to[(r * call.shape.n_heads + head) * 64] = __float2bfloat16(shared[lane * stride + e]);
  }
}
__host__ __device__ constexpr int StoringBlocks(int n_rows, int rank) {
  return rank > 0 ? (n_rows + kStoredRows - 1) / kStoredRows : 0;
}

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
        first_row((blockIdx.x - StoringBlocks(c.n_rows, kRank)) * kRows),
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
    return (call.shape.rank_q + (is_value ? kRank : 0)) * (call.shape.n_heads + kDim);
  }

  // Everything is asked for at once.
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
    const int half = call.shape.rotary_dim / 2, k = threadIdx.x / (kDim / 2), pair = threadIdx.x % (kDim / 2);
    static_assert(kRows * kDim / 2 <= kThreads);
    if (k < kRows && pair < half) {
      const int64_t at = Exists(k) ? static_cast<int64_t>(call.positions[first_row + k]) * half + pair : 0;
      Cos(k)[pair] = call.cos[at], Sin(k)[pair] = call.sin[at];
    }
    ptx::WaitForChunks();
    __syncthreads();
  }

  // A warp for each B of a row: its numbers `lane` and 32 behind.
  __device__ void FormB(int warp, int lane) const {
    constexpr int kItems = kRows * T::kAll;
    const DecodeShape& shape = call.shape;
    const int half = shape.rotary_dim / 2;
#pragma unroll
    for (int n = 0; n < (kItems + kWarps - 1) / kWarps; ++n) {
      const int item = warp + n * kWarps, k = item % kRows, r = item / kRows;
      if (kItems % kWarps != 0 && item >= kItems) break;
      const bool is_query = r < kRanks;
      const bool is_value = r >= kRanks + kRank;
      const int own = is_query ? r : r - kRanks - (is_value ? kRank : 0);
      const float* x = Projected(k) + own * kDim +
                       (is_query ? shape.rank_q * shape.n_heads : Stored(is_value) + kRank * shape.n_heads);
      float low = 0.0f, high = 0.0f;
      if (!is_query || own < shape.rank_q) {
        low = x[lane], high = x[lane + 32];
        if (!is_value && half == 32) {  // both of a pair
          const float cos = Cos(k)[lane], sin = Sin(k)[lane], first = low;
          low = __fadd_rn(__fmul_rn(first, cos), __fmul_rn(high, sin));
          high = __fsub_rn(__fmul_rn(high, cos), __fmul_rn(first, sin));
        } else if (!is_value) {
          low = Rotated(x, lane, half, Cos(k), Sin(k)), high = Rotated(x, lane + 32, half, Cos(k), Sin(k));
        }
      }
      const float scale = shape.logit_scale * kLog2E;
      B(k, r)[lane] = is_query ? low * scale : Bf16(low);
      B(k, r)[lane + 32] = is_query ? high * scale : Bf16(high);
    }
    __syncthreads();
  }

  // B_K and B_V into the pages.
  __device__ void StoreB(const int (&slots)[kRows], int warp, int lane) const {
    if (blockIdx.y > 0) return;  // the first split does
    static_assert(kWarps % kRows == 0);
    const int k = warp % kRows,
              slot = k < 2 ? (k == 0 ? slots[0] : slots[1]) : (k == 2 ? slots[2] : slots[3]);
    if (slot < 0) return;
    for (int r = warp / kRows; r < 2 * kRank; r += kWarps / kRows) {
      const bool is_value = r >= kRank;
      const float* b = B(k, kRanks + r) + 2 * lane;
      __nv_bfloat16* to = HalfOf<kRank>(call, slot, is_value) + (r - (is_value ? kRank : 0)) * 64 * kDim;
      reinterpret_cast<uint32_t*>(to + slot % 64 * kDim)[lane] = ptx::PackBf16(b[0], b[1]);
    }
  }
};

// kNumbers of the sum of kTerms rank-one terms, bfloat16. Scalars are of one head; those of terms beyond the
// rank are another's, and their B zero. kRounds: as pages have them.
template <bool kRounds, int kTerms, int kNumbers>
__device__ void FormInto(void* to, const float* from, const float (&b)[kTerms][kNumbers]) {
  float scalars[kTerms];
#pragma unroll
  for (int r = 0; r < kTerms; ++r) scalars[r] = from[r];
  if constexpr (kRounds) {
#pragma unroll
    for (int r = 0; r < kTerms; r += 2) {
      const uint32_t both = ptx::PackBf16(scalars[r], r + 1 < kTerms ? scalars[r + 1] : 0.0f);
      scalars[r] = ptx::LowBf16(both);
      if (r + 1 < kTerms) scalars[r + 1] = ptx::HighBf16(both);
    }
  }
  float x[kNumbers] = {};
#pragma unroll
  for (int r = 0; r < kTerms; ++r) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) x[i] = fmaf(scalars[r], b[r][i], x[i]);
  }
  uint32_t words[kNumbers / 2];
#pragma unroll
  for (int i = 0; i < kNumbers / 2; ++i) words[i] = ptx::PackBf16(x[2 * i], x[2 * i + 1]);
  if constexpr (kNumbers == 4) {
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
__global__ void __launch_bounds__(kThreads, (FormTraits<kRanks, kRank>::kBlocks))
    FormRows(const __grid_constant__ QueryCall call, const int row_elements, const int split_heads) {
  using T = FormTraits<kRanks, kRank>;
  constexpr int kNumbers = T::kNumbers;
  extern __shared__ __align__(16) float shared[];
  if constexpr (kRank > 0) {
    if (blockIdx.x < StoringBlocks(call.n_rows, kRank)) {
      Begin(call);
      if (blockIdx.y == 0) StoreA<kRank>(call, row_elements, shared, blockIdx.x * kStoredRows);
      return;
    }
  }
  const FormedRows<kRanks, kRank> rows(call, shared, row_elements, split_heads);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Begin(call);
  const int k = warp % T::kGroups * T::kWarpRows + lane / T::kLanes, at = lane % T::kLanes * kNumbers;
  const int row = rows.first_row + k;
  int slots[kRows] = {}, token = -1;  // of the pages; of the scratch
  if constexpr (kRank > 0) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) slots[i] = rows.Exists(i) ? call.slots[rows.first_row + i] : -1;
    if (call.scratch_tokens != nullptr && row < call.n_rows + call.n_zeros) token = call.scratch_tokens[row];
  }
  rows.Load();
  rows.FormB(warp, lane);
  if constexpr (kRank > 0) rows.StoreB(slots, warp, lane);

  float query[kRanks][kNumbers], key[kRank > 0 ? kRank : 1][kNumbers], value[kRank > 0 ? kRank : 1][kNumbers];
  LoadTerms(rows.B(k, 0) + at, query);
  if constexpr (kRank > 0) {
    LoadTerms(rows.B(k, kRanks) + at, key);
    LoadTerms(rows.B(k, kRanks + kRank) + at, value);
  }
  const bool is_row = row < call.n_rows;
  const int first = rows.first_head + warp / T::kGroups, end = rows.first_head + rows.n_heads;
  const int n_expanded = token >= 0 ? call.n_heads : 0;
  constexpr int kStep = kWarps / T::kGroups;  // heads
  const float* scalars = rows.Projected(k) + first * call.shape.rank_q;
  const float *keys = rows.Projected(k) + rows.Stored(false) + first * kRank, *values = keys;
  values += kRank * (call.shape.n_heads + kDim);
  auto* query_to =
      static_cast<__nv_bfloat16*>(call.queries) + (int64_t{first} * call.query_rows + row) * kDim + at;
  const int64_t query_step = int64_t{kStep} * call.query_rows * kDim;
  int64_t expanded = (int64_t{first} * call.n_scratch_tokens + token) * kDim + at;
  const int64_t expanded_step = int64_t{kStep} * call.n_scratch_tokens * kDim;
#pragma unroll 1
  for (int head = first; head < end; head += kStep) {
    if (is_row) FormInto<false>(query_to, scalars, query);
    query_to += query_step, scalars += kStep * call.shape.rank_q;
    if constexpr (kRank > 0) {
      if (head < n_expanded) {
        FormInto<true>(static_cast<__nv_bfloat16*>(call.keys) + expanded, keys, key);
        FormInto<true>(static_cast<__nv_bfloat16*>(call.values) + expanded, values, value);
      }
      expanded += expanded_step, keys += kStep * kRank, values += kStep * kRank;
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
  const int storing = StoringBlocks(call.n_rows, kRank);
  const int numbers = std::max(T::kFormedNumbers + kRows * ProjectedStride(call.shape.qkv_elements()),
                               storing > 0 ? kStoredRows * (2 * kRank * h + 1) : 0);
  return Launch(&FormRows<kRanks, kRank>, call, dim3(storing + blocks, (h + split_heads - 1) / split_heads),
                numbers * static_cast<int>(sizeof(float)), split_heads, stream);
}

template <int kRanks>
cudaError_t LaunchRanks(const QueryCall& call, cudaStream_t stream) {
  if (call.pages == nullptr) return LaunchFormed<kRanks, 0>(call, stream);
  switch (call.shape.rank) {
    case 1:
      return LaunchFormed<kRanks, 1>(call, stream);
    case 2:
      return LaunchFormed<kRanks, 2>(call, stream);
    case 3:
      return LaunchFormed<kRanks, 3>(call, stream);
    case 4:
      return LaunchFormed<kRanks, 4>(call, stream);
    default:
      return cudaErrorNotSupported;
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
