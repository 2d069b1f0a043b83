#include <cuda_fp8.h>

#include <algorithm>

#include "engine/backend/cuda/decode_newest.cuh"
#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/store_factors.h"
#include "engine/backend/fp8_scale.h"

namespace t6::cuda {
namespace {

constexpr int kStoreThreads = 256, kStoreWarps = kStoreThreads / 32;
// From so many rows on a block takes 32 neighbours: a page's A rows have neighbouring tokens side by side.
constexpr int kManyRows = 256;
constexpr int kManyBlocks = 1024;  // of its grid, at about 5 numbers of A a lane

__device__ void Put(float x, __nv_bfloat16* to) { *to = __float2bfloat16(x); }
__device__ void Put(float x, float* to) { *to = x; }

// A row's factor of keys or of values, and where it goes.
struct Factor {
  int rank, from;      // `from`: of A in the row, B behind it
  int64_t a_to, b_to;  // bytes from the page's first
  int64_t scales_to;   // of fp8 pages
  bool rotates;
};

template <typename T>
struct RowStore {
  const StoreCall& call;
  const float* qkv;  // of this row
  uint8_t* page;
  int column, position;

  __device__ RowStore(const StoreCall& c, int row, int slot)
      : call(c),
        qkv(c.qkv + static_cast<int64_t>(row) *
                        (c.qkv_stride > 0 ? c.qkv_stride
                                          : c.q_elements + (c.rank_k + c.rank_v) * (c.n_heads + c.head_dim))),
        page(static_cast<uint8_t*>(c.pages) + slot / 64 * c.page_bytes),
        column(slot % 64),
        position(c.positions[row]) {}

  // Element k of A [h][R], to [R][h][64].
  __device__ void PutA(const Factor& f, int k) const {
    const int head = k / f.rank, r = k % f.rank;
    Put(qkv[f.from + k], reinterpret_cast<T*>(page + f.a_to) + (r * call.n_heads + head) * 64 + column);
  }
  // Element k of B [R][d] as it is stored.
  __device__ float B(const Factor& f, int k) const {
    const int d = call.head_dim, r = k / d, i = k % d, half = call.rotary_dim / 2;
    const float* x = qkv + f.from + f.rank * call.n_heads + r * d;
    const int64_t angle = static_cast<int64_t>(position) * half;
    return f.rotates ? Rotated(x, i, half, call.cos + angle, call.sin + angle) : x[i];
  }
  // The same, to [R][64][d].
  __device__ void PutB(const Factor& f, int k) const {
    const int d = call.head_dim, r = k / d, i = k % d;
    Put(B(f, k), reinterpret_cast<T*>(page + f.b_to) + (r * 64 + column) * d + i);
  }
  // A's column and B's row r, and what undoes their factors: by a whole warp. T is uint8_t.
  __device__ void PutFp8Term(const Factor& f, int r, int lane) const {
    const int h = call.n_heads, d = call.head_dim;
    const auto size = [](float x) { return __float_as_uint(x) & 0x7fffffffu; };
    const auto round = [](float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); };
    uint32_t a_most = 0, b_most = 0;
    for (int j = lane; j < h; j += 32) a_most = max(a_most, size(qkv[f.from + j * f.rank + r]));
    for (int i = lane; i < d; i += 32) b_most = max(b_most, size(B(f, r * d + i)));
    a_most = __reduce_max_sync(~0u, a_most), b_most = __reduce_max_sync(~0u, b_most);
    const float a_factor = __uint_as_float(PowerOfTwoBits(Fp8Exponent(a_most)));
    const float b_factor = __uint_as_float(PowerOfTwoBits(Fp8Exponent(b_most)));
    uint8_t *a_to = page + f.a_to + r * h * 64 + column, *b_to = page + f.b_to + (r * 64 + column) * d;
    for (int j = lane; j < h; j += 32) a_to[j * 64] = round(qkv[f.from + j * f.rank + r] * a_factor);
    for (int i = lane; i < d; i += 32) b_to[i] = round(B(f, r * d + i) * b_factor);
    if (lane == 0)
      reinterpret_cast<uint32_t*>(page + f.scales_to)[r * 64 + column] = Fp8ScaleBits(a_most, b_most);
  }
};

// The keys' and the values' factor of a row.
struct Factors {
  Factor of[2];
  __device__ explicit Factors(const StoreCall& c)
      : of{{c.rank_k, c.q_elements, c.ak, c.bk, c.sk, true},
           {c.rank_v, c.q_elements + c.rank_k * (c.n_heads + c.head_dim), c.av, c.bv, c.sv, false}} {}
};

// A block a row, a warp a term.
__global__ void __launch_bounds__(kStoreThreads) StoreFp8Factors(const __grid_constant__ StoreCall call) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const int slot = call.slots[blockIdx.x];
  if (slot < 0) return;
  const Factors factors(call);
  const RowStore<uint8_t> row(call, blockIdx.x, slot);
  for (int term = threadIdx.x / 32; term < call.rank_k + call.rank_v; term += blockDim.x / 32) {
    const bool is_value = term >= call.rank_k;
    row.PutFp8Term(factors.of[is_value], is_value ? term - call.rank_k : term, threadIdx.x % 32);
  }
}

// kRows 1: a block a row. kRows 32: the blocks of a column of the grid 32 rows; A with a lane a row, so that
// neighbouring tokens are written together, B with a warp a row.
template <typename T, int kRows>
__global__ void __launch_bounds__(kStoreThreads) StoreFactors(const __grid_constant__ StoreCall call) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const int h = call.n_heads, d = call.head_dim;
  const Factors all(call);
  const Factor(&factors)[2] = all.of;
  const int lane = threadIdx.x % 32, first = blockIdx.x * kRows;
  const int warp = blockIdx.y * kStoreWarps + threadIdx.x / 32, n_warps = gridDim.y * kStoreWarps;

  if constexpr (kRows == 1) {
    const int slot = call.slots[first];
    if (slot < 0) return;
    const RowStore<T> row(call, first, slot);
#pragma unroll
    for (const Factor& f : factors) {
      for (int k = threadIdx.x; k < f.rank * h; k += kStoreThreads) row.PutA(f, k);
      for (int k = threadIdx.x; k < f.rank * d; k += kStoreThreads) row.PutB(f, k);
    }
    return;
  }
  const int own = first + lane, own_slot = own < call.n_rows ? call.slots[own] : -1;
  if (own_slot >= 0) {
    const RowStore<T> row(call, own, own_slot);
#pragma unroll
    for (const Factor& f : factors) {
      // Neighbouring elements of a row lie in one line of the first-level cache.
      const int n = f.rank * h, share = (n + n_warps - 1) / n_warps;
      for (int k = warp * share; k < min(n, (warp + 1) * share); ++k) row.PutA(f, k);
    }
  }
  for (int i = warp; i < kRows && first + i < call.n_rows; i += n_warps) {
    const int slot = call.slots[first + i];
    if (slot < 0) continue;
    const RowStore<T> row(call, first + i, slot);
#pragma unroll
    for (const Factor& f : factors) {
      for (int k = lane; k < f.rank * d; k += 32) row.PutB(f, k);
    }
  }
}

cudaError_t Launch(void (*kernel)(StoreCall), dim3 grid, int n_threads, const StoreCall& call,
                   cudaStream_t stream) {
  const cudaError_t error = PreferShared(reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess) return error;
  const OverlappedLaunch launch(grid, n_threads, 0, stream, call.overlaps_prior);
  return cudaLaunchKernelEx(launch.config(), kernel, call);
}

template <typename T>
cudaError_t LaunchOfType(const StoreCall& call, cudaStream_t stream) {
  if (call.n_rows < kManyRows) {
    return Launch(&StoreFactors<T, 1>, dim3(call.n_rows), kStoreThreads, call, stream);
  }
  const int columns = (call.n_rows + 31) / 32;
  const dim3 grid(columns, std::clamp(kManyBlocks / columns, 1, 8));
  return Launch(&StoreFactors<T, 32>, grid, kStoreThreads, call, stream);
}

}  // namespace

cudaError_t LaunchStoreFactors(const StoreCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  if (call.type == StoreCall::Pages::kFp8) {
    const int n_threads = std::min(32 * (call.rank_k + call.rank_v), kStoreThreads);
    return Launch(&StoreFp8Factors, dim3(call.n_rows), n_threads, call, stream);
  }
  return call.type == StoreCall::Pages::kF32 ? LaunchOfType<float>(call, stream)
                                             : LaunchOfType<__nv_bfloat16>(call, stream);
}

}  // namespace t6::cuda
