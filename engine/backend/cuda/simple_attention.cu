#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/simple_attention_kernel.h"
#include "engine/base/page_tokens.h"

namespace t6::cuda {
namespace {

constexpr int kThreads = 128, kColumns = kMaxSimpleHeadDim / kThreads;
static_assert(kThreads >= kPageTokens);

__device__ float Number(const float* p, int64_t i) { return p[i]; }
__device__ float Number(const __nv_bfloat16* p, int64_t i) { return __bfloat162float(p[i]); }
__device__ float Number(const uint8_t* p, int64_t i) { return ptx::Fp8ToFloat(p[i]); }

// Of rank r and a token; 1 where numbers are as they are.
template <typename T>
__device__ float Scale(const uint8_t* scales, int r, int token) {
  if constexpr (sizeof(T) == 1) return reinterpret_cast<const float*>(scales)[r * kPageTokens + token];
  return 1.0f;
}

// The sequence that has `row`, or -1.
__device__ int SequenceOf(const SimpleAttentionCall& c, int row) {
  if (row >= *c.n_rows) return -1;
  int low = 0, high = *c.n_sequences - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (c.row_begin[middle] <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return c.row_begin[low + 1] - c.row_begin[low] >= c.min_rows ? low : -1;
}

// Two numbers that all threads reduce: the maximum, then the sum.
__device__ float BlockReduce(float x, bool sum, float* scratch) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    const float other = __shfl_xor_sync(~0u, x, i);
    x = sum ? x + other : fmaxf(x, other);
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float all = scratch[0];
  for (int w = 1; w < kThreads / 32; ++w) all = sum ? all + scratch[w] : fmaxf(all, scratch[w]);
  return all;
}

// The scaled and rotated query of one row and head.
__device__ void FormQuery(const SimpleAttentionCall& c, int row, int head, float* unrotated, float* query) {
  const float* q = c.qkv + static_cast<int64_t>(row) * c.qkv_stride;
  const int d = c.head_dim, half = c.rotary_dim / 2;
  for (int i = threadIdx.x; i < d; i += kThreads) {
    float x = 0.0f;
    if (c.rank_q == 0) x = q[head * d + i];
    for (int r = 0; r < c.rank_q; ++r) {
      x = fmaf(q[head * c.rank_q + r], q[c.n_heads * c.rank_q + r * d + i], x);
    }
    unrotated[i] = x * c.logit_scale;
  }
  __syncthreads();
  const int64_t angle = static_cast<int64_t>(c.positions[row]) * half;
  for (int i = threadIdx.x; i < d; i += kThreads) {
    float x = unrotated[i];
    if (i < half) {
      x = x * c.cos[angle + i] + unrotated[i + half] * c.sin[angle + i];
    } else if (i < 2 * half) {
      x = x * c.cos[angle + i - half] - unrotated[i - half] * c.sin[angle + i - half];
    }
    query[i] = x;
  }
  __syncthreads();
}

template <typename T>
__global__ void __launch_bounds__(kThreads) SimpleAttention(const __grid_constant__ SimpleAttentionCall c) {
  __shared__ float unrotated[kMaxSimpleHeadDim], query[kMaxSimpleHeadDim];
  __shared__ float weights[kPageTokens], scratch[kThreads / 32];
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const int row = blockIdx.x, head = blockIdx.y, sequence = SequenceOf(c, row), d = c.head_dim;
  if (sequence < 0) return;
  FormQuery(c, row, head, unrotated, query);
  const int n_tokens = c.positions[row] + 1;
  const int32_t* pages = c.page_ids + c.page_begin[sequence];
  float max = -INFINITY, sum = 0.0f, out[kColumns] = {};
  for (int first = 0; first < n_tokens; first += kPageTokens) {
    const uint8_t* page = c.pages + pages[first / kPageTokens] * c.page_bytes;
    const auto* bk = reinterpret_cast<const T*>(page + c.bk);
    const auto* ak = reinterpret_cast<const T*>(page + c.ak);
    const auto* bv = reinterpret_cast<const T*>(page + c.bv);
    const auto* av = reinterpret_cast<const T*>(page + c.av);
    const int valid = min(kPageTokens, n_tokens - first), token = threadIdx.x;
    float logit = -INFINITY;
    if (token < valid) {
      logit = 0.0f;
      for (int r = 0; r < c.rank_k; ++r) {
        float product = 0.0f;
        for (int i = 0; i < d; ++i) {
          product = fmaf(query[i], Number(bk, (r * kPageTokens + token) * d + i), product);
        }
        const float a = Number(ak, (r * c.n_heads + head) * kPageTokens + token);
        logit = fmaf(a * Scale<T>(page + c.sk, r, token), product, logit);
      }
    }
    const float risen = fmaxf(max, BlockReduce(logit, false, scratch));
    const float weight = token < valid ? expf(logit - risen) : 0.0f;
    if (token < kPageTokens) weights[token] = weight;
    const float factor = expf(max - risen);  // 0 at first
    sum = sum * factor + BlockReduce(weight, true, scratch);
    max = risen;
    for (int k = 0; k < kColumns; ++k) {
      const int i = threadIdx.x + k * kThreads;
      if (i >= d) break;
      float value = out[k] * factor;
      for (int r = 0; r < c.rank_v; ++r) {
        for (int t = 0; t < valid; ++t) {
          const float a = Number(av, (r * c.n_heads + head) * kPageTokens + t);
          value = fmaf(weights[t] * a * Scale<T>(page + c.sv, r, t),
                       Number(bv, (r * kPageTokens + t) * d + i), value);
        }
      }
      out[k] = value;
    }
    __syncthreads();
  }
  float square = 0.0f;
  for (int k = 0; k < kColumns; ++k) {
    out[k] /= sum * static_cast<float>(c.rank_v);
    if (static_cast<int>(threadIdx.x) + k * kThreads < d) square += out[k] * out[k];
  }
  float scale = 1.0f;
  if (c.head_norm_weight != nullptr) {
    scale = 1.0f / sqrtf(BlockReduce(square, true, scratch) / static_cast<float>(d) + c.head_norm_eps);
  }
  for (int k = 0; k < kColumns; ++k) {
    const int i = threadIdx.x + k * kThreads;
    if (i >= d) break;
    const float weight = c.head_norm_weight != nullptr ? c.head_norm_weight[i] : 1.0f;
    c.out.Store((static_cast<int64_t>(row) * c.n_heads + head) * d + i, out[k] * scale * weight);
  }
}

}  // namespace

cudaError_t LaunchSimpleAttention(const SimpleAttentionCall& call, cudaStream_t stream) {
  if (call.row_capacity == 0) return cudaSuccess;
  const auto kernel = call.type == SimpleAttentionCall::Pages::kF32    ? &SimpleAttention<float>
                      : call.type == SimpleAttentionCall::Pages::kBf16 ? &SimpleAttention<__nv_bfloat16>
                                                                       : &SimpleAttention<uint8_t>;
  return LaunchOverlapped(kernel, dim3(call.row_capacity, call.n_heads), kThreads, 0, stream, call);
}

}  // namespace t6::cuda
