#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/store_factors.h"

namespace t6::cuda {
namespace {

constexpr int kStoreThreads = 256;

// y1 = x1 cos + x2 sin, y2 = -x1 sin + x2 cos over the two halves of rotary_dim; the rest as it is. Without
// fused multiply-adds, as the other devices round.
__device__ float Rotated(const float* x, int i, int half, const float* cos, const float* sin) {
  if (i >= 2 * half) return x[i];
  if (i < half) return __fadd_rn(__fmul_rn(x[i], cos[i]), __fmul_rn(x[i + half], sin[i]));
  const int j = i - half;
  return __fsub_rn(__fmul_rn(x[i], cos[j]), __fmul_rn(x[j], sin[j]));
}

// One block a row. A half of a page is B [R][64][d] | A [R][h][64]: A's numbers of one token lie 128 bytes
// apart B's side by side.
__global__ void __launch_bounds__(kStoreThreads)
    StoreFactors(const __grid_constant__ StoreCall call, const __grid_constant__ int half_rows) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const DecodeShape& shape = call.shape;
  const int h = shape.n_heads, d = shape.head_dim, rank = shape.rank, half = shape.rotary_dim / 2;
  const int n_q = shape.rank_q == 0 ? h * d : shape.rank_q * (h + d), n_factor = rank * (h + d);
  const int row = blockIdx.x, slot = call.slots[row], column = slot % 64;
  const float* factors = call.qkv + static_cast<int64_t>(row) * (n_q + 2 * n_factor) + n_q;
  const int64_t angle = static_cast<int64_t>(call.positions[row]) * half;
  auto* page = static_cast<__nv_bfloat16*>(call.pages) + static_cast<int64_t>(slot / 64) * 2 * half_rows * 64;

  for (int item = threadIdx.x; item < 2 * n_factor; item += kStoreThreads) {
    const bool is_key = item < n_factor;
    const int k = is_key ? item : item - n_factor;
    const float* from = is_key ? factors : factors + n_factor;
    __nv_bfloat16* b = is_key ? page : page + half_rows * 64;
    if (k < rank * h) {  // A [h][R]
      const int head = k / rank, r = k % rank;
      b[rank * 64 * d + (r * h + head) * 64 + column] = __float2bfloat16(from[k]);
    } else {
      const int r = (k - rank * h) / d, i = (k - rank * h) % d;
      const float* x = from + rank * h + r * d;
      const float y = is_key ? Rotated(x, i, half, call.cos + angle, call.sin + angle) : x[i];
      b[(r * 64 + column) * d + i] = __float2bfloat16(y);
    }
  }
}

}  // namespace

cudaError_t LaunchStoreFactors(const StoreCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(call.n_rows);
  launch.blockDim = dim3(kStoreThreads);
  launch.stream = stream;
  launch.attrs = &overlap;
  launch.numAttrs = 1;
  return cudaLaunchKernelEx(&launch, &StoreFactors, call, call.shape.half_rows());
}

}  // namespace t6::cuda
