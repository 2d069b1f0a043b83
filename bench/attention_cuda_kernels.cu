#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "bench/attention_cuda_kernels.h"

namespace t6::bench {
namespace {

__device__ uint32_t Hash(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>((x ^ (x >> 31)) >> 32);
}
__device__ float Uniform(uint64_t index, uint32_t seed) {
  return (Hash(index ^ (static_cast<uint64_t>(seed) << 40)) + 0.5f) * 2.3283064e-10f;
}
__device__ float Normal(uint64_t index, uint32_t seed) {
  return sqrtf(-2.0f * __logf(fminf(Uniform(2 * index, seed), 0.9999999f))) *
         __cosf(6.2831853f * Uniform(2 * index + 1, seed));
}

template <typename T>
__global__ void FillKernel(T* to, size_t n, uint32_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
    to[i] = T(Normal(i, seed));
}

__global__ void AngleKernel(float* cos, float* sin, size_t n, uint32_t seed) {
  const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) sincospif(2.0f * Uniform(i, seed), &sin[i], &cos[i]);
}

constexpr int kReadThreads = 512, kReadLoads = 8;

__global__ void __launch_bounds__(kReadThreads)
    ReadKernel(const uint4* from, size_t n, float* never_written) {
  uint32_t all = 0;
  const size_t step = static_cast<size_t>(gridDim.x) * kReadThreads;
  size_t i = static_cast<size_t>(blockIdx.x) * kReadThreads + threadIdx.x;
  for (; i + (kReadLoads - 1) * step < n; i += kReadLoads * step) {
    uint4 x[kReadLoads];
#pragma unroll
    for (int k = 0; k < kReadLoads; ++k) x[k] = __ldcs(from + i + k * step);
#pragma unroll
    for (int k = 0; k < kReadLoads; ++k) all ^= x[k].x ^ x[k].y ^ x[k].z ^ x[k].w;
  }
  for (; i < n; i += step) {
    const uint4 x = __ldcs(from + i);
    all ^= x.x ^ x.y ^ x.z ^ x.w;
  }
  if (all == 0x12345678u) *never_written = 1.0f;  // keeps the loads; one chance in four billion
}

constexpr int kMaxDim = 128, kReferenceThreads = 128;

// A page's halves are B | A, in fp8 B | A | scales.
struct PageHalf {
  const uint8_t* base;
  const t6::cuda::DecodeShape& shape;

  __device__ PageHalf(const ReferenceCall& c, int half_rows, int token, int half)
      : base(static_cast<const uint8_t*>(c.pages) +
             (static_cast<size_t>(c.page_ids[token / 64]) * 2 + half) * half_rows * 128),
        shape(c.shape) {}
  __device__ double Number(int i) const {
    if (!shape.fp8) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(base)[i]);
    __nv_fp8_e4m3 x;
    x.__x = base[i];
    return static_cast<float>(x);
  }
  __device__ double B(int token, int r, int i) const {
    return Number((r * 64 + token % 64) * shape.head_dim + i);
  }
  __device__ double A(int token, int r, int head) const {
    const int b_numbers = shape.rank * 64 * shape.head_dim, a_numbers = shape.rank * 64 * shape.n_heads;
    const double a = Number(b_numbers + (r * shape.n_heads + head) * 64 + token % 64);
    if (!shape.fp8) return a;
    const int scales = b_numbers + (a_numbers + 127) / 128 * 128;
    return a * reinterpret_cast<const float*>(base + scales)[r * 64 + token % 64];
  }
};

// Pages of e4m3 numbers of deviation 100 and scales that make terms' numbers standard normal, within a factor
// of 4.
__global__ void Fp8PagesKernel(uint8_t* pages, size_t n_halves, int number_bytes, int half_bytes,
                               uint32_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x, n = n_halves * half_bytes;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const int at = static_cast<int>(i % half_bytes);
    if (at < number_bytes) {
      pages[i] = __nv_fp8_e4m3(100.0f * Normal(i, seed)).__x;
    } else if (at % 4 == 0) {
      *reinterpret_cast<float*>(pages + i) = exp2f(-14.0f + static_cast<float>(Hash(i + seed) % 3));
    }
  }
}

__device__ double QueryElement(const ReferenceCall& c, int head, int i) {
  const t6::cuda::DecodeShape& s = c.shape;
  if (s.rank_q == 0) return c.qkv[head * s.head_dim + i];
  double x = 0.0;
  for (int r = 0; r < s.rank_q; ++r) {
    x += static_cast<double>(c.qkv[head * s.rank_q + r]) * c.qkv[s.n_heads * s.rank_q + r * s.head_dim + i];
  }
  return x;
}

// One block a head; scores are computed twice, once for the maximum.
__global__ void __launch_bounds__(kReferenceThreads) ReferenceKernel(ReferenceCall c, int half_rows) {
  const t6::cuda::DecodeShape& shape = c.shape;
  const int d = shape.head_dim, head = blockIdx.x, half = shape.rotary_dim / 2;
  __shared__ double query[kMaxDim], out[kMaxDim], sum, most[kReferenceThreads];
  for (int i = threadIdx.x; i < d; i += kReferenceThreads) {
    double x = QueryElement(c, head, i);
    if (i < half) x = x * c.cos[i] + QueryElement(c, head, i + half) * c.sin[i];
    if (i >= half && i < 2 * half)
      x = x * c.cos[i - half] - QueryElement(c, head, i - half) * c.sin[i - half];
    query[i] = x * shape.logit_scale, out[i] = 0.0;
  }
  if (threadIdx.x == 0) sum = 0.0;
  __syncthreads();
  const auto logit = [&](int token) {
    const PageHalf keys(c, half_rows, token, 0);
    double l = 0.0;
    for (int r = 0; r < shape.rank; ++r) {
      double s = 0.0;
      for (int i = 0; i < d; ++i) s += query[i] * keys.B(token, r, i);
      l += s * keys.A(token, r, head);
    }
    return l;
  };
  double own = -INFINITY;
  for (int t = threadIdx.x; t < c.length; t += kReferenceThreads) own = fmax(own, logit(t));
  most[threadIdx.x] = own;
  __syncthreads();
  for (int i = 0; i < kReferenceThreads; ++i) own = fmax(own, most[i]);
  double mine[kMaxDim] = {}, weights = 0.0;
  for (int t = threadIdx.x; t < c.length; t += kReferenceThreads) {
    const double p = exp(logit(t) - own);
    weights += p;
    for (int r = 0; r < shape.rank; ++r) {
      const PageHalf values(c, half_rows, t, 1);
      const double w = p * values.A(t, r, head);
      for (int i = 0; i < d; ++i) mine[i] += w * values.B(t, r, i);
    }
  }
  atomicAdd(&sum, weights);
  for (int i = 0; i < d; ++i) atomicAdd(&out[i], mine[i]);
  __syncthreads();
  for (int i = threadIdx.x; i < d; i += kReferenceThreads) c.out[head * d + i] = out[i] / (sum * shape.rank);
}

}  // namespace

void FillNormalBf16(void* to, size_t n, uint32_t seed, cudaStream_t stream) {
  FillKernel<<<2048, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(to), n, seed);
}
void FillFp8Pages(void* to, const t6::cuda::DecodeShape& shape, size_t n_pages, uint32_t seed,
                  cudaStream_t stream) {
  const int half_bytes = shape.half_rows() * 128, scale_bytes = shape.rank * 64 * 4;
  Fp8PagesKernel<<<2048, 256, 0, stream>>>(static_cast<uint8_t*>(to), n_pages * 2, half_bytes - scale_bytes,
                                           half_bytes, seed);
}
void FillNormal(float* to, size_t n, uint32_t seed, cudaStream_t stream) {
  FillKernel<<<512, 256, 0, stream>>>(to, n, seed);
}
void FillAngles(float* cos, float* sin, size_t n, uint32_t seed, cudaStream_t stream) {
  AngleKernel<<<static_cast<unsigned>((n + 255) / 256), 256, 0, stream>>>(cos, sin, n, seed);
}
void ReadOnly(const void* bytes, size_t n, int n_sms, float* never_written, cudaStream_t stream) {
  ReadKernel<<<n_sms * 4, kReadThreads, 0, stream>>>(static_cast<const uint4*>(bytes), n / 16, never_written);
}
void Reference(const ReferenceCall& call, cudaStream_t stream) {
  ReferenceKernel<<<call.shape.n_heads, kReferenceThreads, 0, stream>>>(call, call.shape.half_rows());
}

}  // namespace t6::bench
