#include <algorithm>

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

// Rotation is linear, so B_Q is rotated, once, instead of every head's query. A lane has two neighbouring
// numbers of every head; its part of B_Q stays in registers. kRows of a block's rows at once, so that many
// loads are on their way; kRanks >= R_Q, the rest are zeros.
template <typename Input, int kRows, int kRanks>
__global__ void __launch_bounds__(kThreads, kRanks <= 8 ? 4 : 1)
    FormQueries(const __grid_constant__ QueryCall call, const int row_elements) {
  extern __shared__ __align__(16) float factors[];  // [kRows] of: rotated B_Q [kRanks][d], A_Q [h][kRanks]
  const DecodeShape& shape = call.shape;
  const int h = shape.n_heads, d = shape.head_dim, rank = shape.rank_q, half = shape.rotary_dim / 2;
  const int width = max(d, 64), row_factors = kRanks * (d + h);
  const float scale = shape.logit_scale * kLog2E;
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  if (blockIdx.x == 0) {
    for (int i = threadIdx.x; i < kMaxPrefillPasses; i += kThreads) call.counters[i] = 0;
  }
  const auto input = [&](int row) {
    return static_cast<const Input*>(call.qkv) + static_cast<int64_t>(row) * row_elements;
  };
  const auto angles = [&](const float* of, int row) {
    return of + static_cast<int64_t>(call.positions[row]) * half;
  };
  const int first_row = blockIdx.x * kRows;
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const int row = min(first_row + k, call.n_rows - 1);
    const Input* q = input(row);
    const float *cos = angles(call.cos, row), *sin = angles(call.sin, row);
    float *b = factors + k * row_factors, *a = b + kRanks * d;
    for (int i = threadIdx.x; i < kRanks * d; i += kThreads) {
      b[i] = i < rank * d ? Rotated(q + h * rank + i / d * d, i % d, half, cos, sin) * scale : 0.0f;
    }
    for (int i = threadIdx.x; i < kRanks * h; i += kThreads) {
      a[i] = i % kRanks < rank ? Load(q + i / kRanks * rank + i % kRanks) : 0.0f;
    }
  }
  __syncthreads();

  const int lane = threadIdx.x % 32;
  for (int k = 0; k < kRows && first_row + k < call.n_rows; ++k) {
    const int row = first_row + k;
    const float *b = factors + k * row_factors, *a = b + kRanks * d;
    for (int pair = lane; pair < width / 2; pair += 32) {
      const bool exists = 2 * pair < d;
      float2 own[kRanks];
#pragma unroll
      for (int r = 0; r < kRanks; ++r) {
        own[r] = exists ? *reinterpret_cast<const float2*>(b + r * d + 2 * pair) : make_float2(0.0f, 0.0f);
      }
#pragma unroll 4
      for (int head = threadIdx.x / 32; head < h; head += kThreads / 32) {
        float2 x = make_float2(0.0f, 0.0f);
        if (rank == 0 && exists) {
          const Input* full = input(row) + head * d;
          const float *cos = angles(call.cos, row), *sin = angles(call.sin, row);
          x = make_float2(Rotated(full, 2 * pair, half, cos, sin) * scale,
                          Rotated(full, 2 * pair + 1, half, cos, sin) * scale);
        }
#pragma unroll
        for (int r = 0; r < kRanks; r += 4) {
          const float4 scalars = *reinterpret_cast<const float4*>(a + head * kRanks + r);
          x.x = fmaf(scalars.x, own[r].x, x.x), x.y = fmaf(scalars.x, own[r].y, x.y);
          x.x = fmaf(scalars.y, own[r + 1].x, x.x), x.y = fmaf(scalars.y, own[r + 1].y, x.y);
          x.x = fmaf(scalars.z, own[r + 2].x, x.x), x.y = fmaf(scalars.z, own[r + 2].y, x.y);
          x.x = fmaf(scalars.w, own[r + 3].x, x.x), x.y = fmaf(scalars.w, own[r + 3].y, x.y);
        }
        auto* to = static_cast<uint32_t*>(call.queries) +
                   (static_cast<int64_t>(head) * call.query_rows + row) * (width / 2);
        to[pair] = ptx::PackBf16(x.x, x.y);
      }
    }
  }
}

template <typename Input, int kRanks>
cudaError_t Launch(const QueryCall& call, cudaStream_t stream) {
  constexpr int kManyRows = 2;
  const bool many = call.n_rows >= 1024;
  const int rows = many ? kManyRows : 1;
  const auto kernel = many ? &FormQueries<Input, kManyRows, kRanks> : &FormQueries<Input, 1, kRanks>;
  const int shared =
      rows * kRanks * (call.shape.n_heads + call.shape.head_dim) * static_cast<int>(sizeof(float));
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3((call.n_rows + rows - 1) / rows);
  launch.blockDim = dim3(kThreads);
  launch.dynamicSmemBytes = shared;
  launch.stream = stream;
  launch.attrs = &overlap, launch.numAttrs = 1;
  return cudaLaunchKernelEx(&launch, kernel, call, call.shape.qkv_elements());
}

template <typename Input>
cudaError_t LaunchFor(const QueryCall& call, cudaStream_t stream) {
  if (call.shape.rank_q <= 8) return Launch<Input, 8>(call, stream);
  if (call.shape.rank_q <= 16) return Launch<Input, 16>(call, stream);
  return call.shape.rank_q <= kMaxQueryRank ? Launch<Input, kMaxQueryRank>(call, stream)
                                            : cudaErrorNotSupported;
}

}  // namespace

cudaError_t LaunchQueries(const QueryCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  return call.qkv_is_bf16 ? LaunchFor<__nv_bfloat16>(call, stream) : LaunchFor<float>(call, stream);
}

}  // namespace t6::cuda
