#include <algorithm>

#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/prefill_attention.h"
#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLog2E = 1.4426950408889634f;

__device__ float Load(const float* x) { return *x; }
__device__ float Load(const __nv_bfloat16* x) { return __bfloat162float(*x); }

// Number i of x [d] after rotation.
template <typename Input>
__device__ float Rotated(const Input* x, int i, int half, const float* cos, const float* sin) {
  if (i >= 2 * half) return Load(x + i);
  if (i < half) return Load(x + i) * cos[i] + Load(x + i + half) * sin[i];
  return Load(x + i) * cos[i - half] - Load(x + i - half) * sin[i - half];
}

// What a block forms: queries of rows [first, first + n), read as `Input`.
template <typename Input>
struct Rows {
  const QueryCall& call;
  const int stride, half;  // of qkv; of rotary_dim
  __device__ Rows(const QueryCall& c, int row_elements)
      : call(c), stride(row_elements), half(c.shape.rotary_dim / 2) {}
  __device__ const Input* operator[](int row) const {
    return static_cast<const Input*>(call.qkv) + static_cast<int64_t>(row) * stride;
  }
  __device__ const float* Angles(const float* of, int row) const {
    return of + static_cast<int64_t>(call.positions[row]) * half;
  }
  __device__ uint32_t* Query(int head, int row, int width) const {
    return static_cast<uint32_t*>(call.queries) +
           (static_cast<int64_t>(head) * call.query_rows + row) * (width / 2);
  }
};

__device__ void Begin(const QueryCall& call) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  if (blockIdx.x > 0) return;
  for (int i = threadIdx.x; i < kMaxPrefillPasses; i += kThreads) call.counters[i] = 0;
}

// Rotation is linear, so B_Q is rotated, once, instead of every head's query. A lane has two neighbouring
// numbers of every head; its part of B_Q stays in registers. kRows of a block's rows at once, so that many
// loads are on their way; kRanks >= R_Q, the rest are zeros.
template <typename Input, int kRows, int kRanks>
__global__ void __launch_bounds__(kThreads, kRanks <= 8 ? 4 : 1)
    FormQueries(const __grid_constant__ QueryCall call, const int row_elements) {
  extern __shared__ __align__(16) float factors[];  // [kRows] of: rotated B_Q [kRanks][d], A_Q [h][kRanks]
  const DecodeShape& shape = call.shape;
  const Rows<Input> rows(call, row_elements);
  const int h = shape.n_heads, d = shape.head_dim, rank = shape.rank_q;
  const int width = max(d, 64), row_factors = kRanks * (d + h);
  const float scale = shape.logit_scale * kLog2E;
  Begin(call);
  const int first_row = blockIdx.x * kRows, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int item = warp; item < kRows * kRanks; item += kThreads / 32) {
    const int k = item / kRanks, r = item % kRanks, row = min(first_row + k, call.n_rows - 1);
    const Input* q = rows[row] + h * rank + r * d;
    const float *cos = rows.Angles(call.cos, row), *sin = rows.Angles(call.sin, row);
    float* b = factors + k * row_factors + r * d;
    for (int i = lane; i < d; i += 32) b[i] = r < rank ? Rotated(q, i, rows.half, cos, sin) * scale : 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const Input* q = rows[min(first_row + k, call.n_rows - 1)];
    float* a = factors + k * row_factors + kRanks * d;
#pragma unroll 4
    for (int i = threadIdx.x; i < kRanks * h; i += kThreads) {
      a[i] = i % kRanks < rank ? Load(q + i / kRanks * rank + i % kRanks) : 0.0f;
    }
  }
  __syncthreads();

  for (int k = 0; k < kRows && first_row + k < call.n_rows; ++k) {
    const float *b = factors + k * row_factors, *a = b + kRanks * d;
    for (int pair = lane; pair < width / 2; pair += 32) {
      float2 own[kRanks];
#pragma unroll
      for (int r = 0; r < kRanks; ++r) {
        own[r] =
            2 * pair < d ? *reinterpret_cast<const float2*>(b + r * d + 2 * pair) : make_float2(0.0f, 0.0f);
      }
      uint32_t* to = rows.Query(warp, first_row + k, width) + pair;
      const int64_t step = static_cast<int64_t>(kThreads / 32) * call.query_rows * (width / 2);
#pragma unroll 4
      for (int head = warp; head < h; head += kThreads / 32, to += step) {
        float2 x = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int r = 0; r < kRanks; r += 4) {
          const float4 scalars = *reinterpret_cast<const float4*>(a + head * kRanks + r);
          x.x = fmaf(scalars.x, own[r].x, x.x), x.y = fmaf(scalars.x, own[r].y, x.y);
          x.x = fmaf(scalars.y, own[r + 1].x, x.x), x.y = fmaf(scalars.y, own[r + 1].y, x.y);
          x.x = fmaf(scalars.z, own[r + 2].x, x.x), x.y = fmaf(scalars.z, own[r + 2].y, x.y);
          x.x = fmaf(scalars.w, own[r + 3].x, x.x), x.y = fmaf(scalars.w, own[r + 3].y, x.y);
        }
        *to = ptx::PackBf16(x.x, x.y);
      }
    }
  }
}

// The projection gave the queries themselves (R_Q 0): a warp a head, a block a row.
template <typename Input>
__global__ void __launch_bounds__(kThreads)
    RotateQueries(const __grid_constant__ QueryCall call, const int row_elements) {
  const DecodeShape& shape = call.shape;
  const Rows<Input> rows(call, row_elements);
  const int d = shape.head_dim, width = max(d, 64), row = blockIdx.x;
  const float scale = shape.logit_scale * kLog2E;
  Begin(call);
  const float *cos = rows.Angles(call.cos, row), *sin = rows.Angles(call.sin, row);
  for (int head = threadIdx.x / 32; head < shape.n_heads; head += kThreads / 32) {
    const Input* q = rows[row] + head * d;
    uint32_t* to = rows.Query(head, row, width);
    for (int pair = threadIdx.x % 32; pair < width / 2; pair += 32) {
      const bool exists = 2 * pair < d;
      to[pair] = exists ? ptx::PackBf16(Rotated(q, 2 * pair, rows.half, cos, sin) * scale,
                                        Rotated(q, 2 * pair + 1, rows.half, cos, sin) * scale)
                        : 0;
    }
  }
}

cudaError_t Launch(void (*kernel)(QueryCall, int), const QueryCall& call, int n_blocks, int shared,
                   cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const OverlappedLaunch launch(dim3(n_blocks), kThreads, shared, stream, true);
  const int stride = call.qkv_stride > 0 ? call.qkv_stride : call.shape.qkv_elements();
  return cudaLaunchKernelEx(launch.config(), kernel, call, stride);
}

// Several rows a block where that leaves enough blocks.
template <typename Input, int kRanks>
cudaError_t LaunchFormed(const QueryCall& call, cudaStream_t stream) {
  const bool many = call.n_rows >= 4096;
  const int rows = many ? 4 : 1;
  const auto kernel = many ? &FormQueries<Input, 4, kRanks> : &FormQueries<Input, 1, kRanks>;
  const int shared =
      rows * kRanks * (call.shape.n_heads + call.shape.head_dim) * static_cast<int>(sizeof(float));
  return Launch(kernel, call, (call.n_rows + rows - 1) / rows, shared, stream);
}

template <typename Input>
cudaError_t LaunchFor(const QueryCall& call, cudaStream_t stream) {
  if (call.shape.rank_q == 0) return Launch(&RotateQueries<Input>, call, call.n_rows, 0, stream);
  if (call.shape.rank_q <= 8) return LaunchFormed<Input, 8>(call, stream);
  if (call.shape.rank_q <= 16) return LaunchFormed<Input, 16>(call, stream);
  return call.shape.rank_q <= kMaxQueryRank ? LaunchFormed<Input, kMaxQueryRank>(call, stream)
                                            : cudaErrorNotSupported;
}

}  // namespace

cudaError_t LaunchQueries(const QueryCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  return call.qkv_is_bf16 ? LaunchFor<__nv_bfloat16>(call, stream) : LaunchFor<float>(call, stream);
}

}  // namespace t6::cuda
