#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/rows_attention.h"

namespace t6::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kLoads = 8;  // partials that a lane asks for before it uses the first
constexpr float kNoMaximum = -1e30f;

// One warp a (row, head): adds its partial results in order, divides by R_V and the weights' sum, head norm.
template <int kDim>
__global__ void __launch_bounds__(kWarps * 32) CombineRows(const __grid_constant__ RowsCombineCall call) {
  constexpr int kColumns = kDim / 32;  // of a lane
  ptx::LetDependentsLaunch();  // a product's first weights come while this is added up
  ptx::WaitForPriorKernels();
  const int head = blockIdx.y * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (head >= call.n_heads) return;
  const RowsMerge merge = call.merges[blockIdx.x];
  float most = kNoMaximum, total = 0.0f, out[kColumns] = {};
  for (int run = 0; run < 2; ++run) {
    for (int base = 0; base < merge.n[run]; base += kLoads) {
      float2 max_sum[kLoads];
      float o[kLoads][kColumns];
      float next = most;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const bool exists = base + i < merge.n[run];
        const int64_t slot =
            (merge.begin[run] + static_cast<int64_t>(base + i) * merge.stride[run]) * call.n_heads + head;
        max_sum[i] = exists ? call.partials.max_sum[slot] : make_float2(kNoMaximum, 0.0f);
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          o[i][k] = exists ? call.partials.out[slot * kDim + lane * kColumns + k] : 0.0f;
        }
        next = fmaxf(next, max_sum[i].x);
      }
      const float own = ptx::Exp2(most - next);
      most = next, total *= own;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) out[k] *= own;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const float factor = ptx::Exp2(max_sum[i].x - most);
        total = fmaf(factor, max_sum[i].y, total);
#pragma unroll
        for (int k = 0; k < kColumns; ++k) out[k] = fmaf(factor, o[i][k], out[k]);
      }
    }
  }
  float square = 0.0f;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) out[k] /= total * call.rank, square += out[k] * out[k];
  if (call.head_norm_weight != nullptr) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) square += __shfl_xor_sync(~0u, square, lanes);
    const float scale = rsqrtf(square / kDim + call.head_norm_eps);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) out[k] *= scale * call.head_norm_weight[lane * kColumns + k];
  }
  const int64_t at = (static_cast<int64_t>(merge.row) * call.n_heads + head) * kDim + lane * kColumns;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    if (call.out_is_bf16) {
      static_cast<__nv_bfloat16*>(call.out)[at + k] = __float2bfloat16(out[k]);
    } else {
      static_cast<float*>(call.out)[at + k] = out[k];
    }
  }
}

}  // namespace

cudaError_t LaunchRowsCombine(const RowsCombineCall& call, cudaStream_t stream) {
  if (call.n_merges == 0) return cudaSuccess;
  const dim3 grid(call.n_merges, (call.n_heads + kWarps - 1) / kWarps);
  const OverlappedLaunch launch(grid, kWarps * 32, 0, stream, true);
  const auto kernel = call.head_dim == 32   ? &CombineRows<32>
                      : call.head_dim == 64 ? &CombineRows<64>
                                            : &CombineRows<128>;
  return cudaLaunchKernelEx(launch.config(), kernel, call);
}

}  // namespace t6::cuda
