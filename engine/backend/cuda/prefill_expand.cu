#include <algorithm>

#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/prefill_attention.h"
#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDim = 64;
constexpr int kMinBlocks = 512;  // of the grid, if there are as many heads

__device__ float LoadOne(const uint8_t* half, bool fp8, int i) {
  return fp8 ? ptx::Fp8ToFloat(half[i]) : __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(half)[i]);
}
__device__ void LoadEight(const uint8_t* half, bool fp8, int first, float* to) {
  if (fp8) {
    const uint2 x = *reinterpret_cast<const uint2*>(half + first);
    const uint32_t words[2] = {x.x, x.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t low, high;
      ptx::Fp8ToHalf(words[i], &low, &high);
      const float2 p = ptx::HalvesToFloats(low), q = ptx::HalvesToFloats(high);
      to[4 * i] = p.x, to[4 * i + 1] = p.y, to[4 * i + 2] = q.x, to[4 * i + 3] = q.y;
    }
  } else {
    const uint4 x = *reinterpret_cast<const uint4*>(half + first * 2);
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) to[2 * i] = ptx::LowBf16(words[i]), to[2 * i + 1] = ptx::HighBf16(words[i]);
  }
}

// One block expands keys (y = 0) or values (y = 1) of one page for a run of heads: a thread has numbers 8 q
// .. and 32 + 8 q .. of one token, whose B stays in registers as float32.
template <int kRank, bool kFp8>
__global__ void __launch_bounds__(kThreads)
    Expand(const __grid_constant__ ExpandCall call, const int half_rows) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const ExpandPage page = call.expands[blockIdx.x];
  const int h = call.shape.n_heads, token = threadIdx.x / 4, quarter = threadIdx.x % 4;
  const bool exists = token < page.n_tokens;
  if (!exists && call.keeps_rest) return;
  const int share = (call.n_heads + gridDim.z - 1) / gridDim.z;
  const int begin = blockIdx.z * share, end = min(begin + share, call.n_heads);
  const auto* half = static_cast<const uint8_t*>(call.pages) +
                     (static_cast<int64_t>(max(page.id, 0)) * 2 + blockIdx.y) * half_rows * 128;
  float b[kRank][16];
#pragma unroll
  for (int r = 0; r < kRank; ++r) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float* to = &b[r][part * 8];
#pragma unroll
      for (int i = 0; i < 8; ++i) to[i] = 0.0f;
      if (exists) LoadEight(half, kFp8, (r * 64 + token) * kDim + part * 32 + quarter * 8, to);
    }
  }
  float scale[kRank];
  const uint8_t* scales = half + kRank * 64 * kDim + (kRank * 64 * h + 127) / 128 * 128;
#pragma unroll
  for (int r = 0; r < kRank; ++r)
    scale[r] = kFp8 && exists ? reinterpret_cast<const float*>(scales)[r * 64 + token] : 1.0f;
  const int a = kRank * 64 * kDim + call.first_head * 64 + token;
  auto* out = static_cast<__nv_bfloat16*>(blockIdx.y == 0 ? call.keys : call.values) +
              (static_cast<int64_t>(page.scratch_token) + token) * kDim + quarter * 8;
#pragma unroll 4
  for (int head = begin; head < end; ++head) {
    float x[16] = {};
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
      const float scalar = exists ? LoadOne(half, kFp8, a + (r * h + head) * 64) * scale[r] : 0.0f;
#pragma unroll
      for (int i = 0; i < 16; ++i) x[i] = fmaf(scalar, b[r][i], x[i]);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      uint4 words;
      words.x = ptx::PackBf16(x[part * 8], x[part * 8 + 1]);
      words.y = ptx::PackBf16(x[part * 8 + 2], x[part * 8 + 3]);
      words.z = ptx::PackBf16(x[part * 8 + 4], x[part * 8 + 5]);
      words.w = ptx::PackBf16(x[part * 8 + 6], x[part * 8 + 7]);
      *reinterpret_cast<uint4*>(out + static_cast<int64_t>(head) * call.n_scratch_tokens * kDim + part * 32) =
          words;
    }
  }
}

template <bool kFp8>
auto KernelOf(int rank) {
  return rank == 1   ? &Expand<1, kFp8>
         : rank == 2 ? &Expand<2, kFp8>
         : rank == 3 ? &Expand<3, kFp8>
                     : &Expand<4, kFp8>;
}

}  // namespace

cudaError_t LaunchExpand(const ExpandCall& call, cudaStream_t stream) {
  if (call.n_expands == 0 || call.n_heads == 0) return cudaSuccess;
  const auto kernel = call.shape.fp8 ? KernelOf<true>(call.shape.rank) : KernelOf<false>(call.shape.rank);
  const int splits = std::clamp(kMinBlocks / (2 * call.n_expands), 1, call.n_heads);
  return LaunchOverlapped(kernel, dim3(call.n_expands, 2, splits), kThreads, 0, stream, call,
                          call.shape.half_rows());
}

}  // namespace t6::cuda
