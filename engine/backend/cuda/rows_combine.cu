#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/rows_params.cuh"

namespace t6::cuda {
namespace {

constexpr int kDim = 64, kWarps = 4;
constexpr int kLoads = 8;  // partials that a lane asks for before it uses the first

// One warp a (row, head): adds its partial results in order, divides by R_V and the weights' sum, head norm.
// A lane has two numbers that are neighbours in the partials, so d and d + 8, until it exchanges one of them.
__global__ void __launch_bounds__(kWarps * 32) CombineRows(const __grid_constant__ RowsCombineCall call) {
  ptx::LetDependentsLaunch();  // a product's first weights come while this is added up
  const RowsMerge merge = call.merges[blockIdx.x];
  ptx::WaitForPriorKernels();
  const int head = blockIdx.y * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (head >= call.n_heads) return;
  const auto* from = reinterpret_cast<const float2*>(call.partials.out) + lane;
  float most = kNoMax, total = 0.0f;
  float2 out = make_float2(0.0f, 0.0f);
  for (int run = 0; run < 2; ++run) {
    for (int base = 0; base < merge.n[run]; base += kLoads) {
      float2 max_sum[kLoads], o[kLoads];
      float next = most;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const bool exists = base + i < merge.n[run];
        const int64_t slot =
            (merge.begin[run] + static_cast<int64_t>(base + i) * merge.stride[run]) * call.n_heads + head;
        max_sum[i] = exists ? call.partials.max_sum[slot] : make_float2(kNoMax, 0.0f);
        o[i] = exists ? from[slot * (kDim / 2)] : make_float2(0.0f, 0.0f);
        next = fmaxf(next, max_sum[i].x);
      }
      const float own = ptx::Exp2(most - next);
      most = next, total *= own, out.x *= own, out.y *= own;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const float factor = ptx::Exp2(max_sum[i].x - most);
        total = fmaf(factor, max_sum[i].y, total);
        out.x = fmaf(factor, o[i].x, out.x), out.y = fmaf(factor, o[i].y, out.y);
      }
    }
  }
  out.x /= total * call.rank, out.y /= total * call.rank;
  // Numbers d and d + 8 of an even lane, d + 1 and d + 9 of the next: d and d + 1, d + 8 and d + 9.
  const bool is_odd = lane % 2 == 1;
  const float given = __shfl_xor_sync(~0u, is_odd ? out.x : out.y, 1);
  (is_odd ? out.x : out.y) = given;
  const int column = lane / 8 * 16 + lane % 8 / 2 * 2 + (is_odd ? 8 : 0);
  if (call.head_norm_weight != nullptr) {
    float square = out.x * out.x + out.y * out.y;
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) square += __shfl_xor_sync(~0u, square, lanes);
    const float scale = rsqrtf(square / kDim + call.head_norm_eps);
    out.x *= scale * call.head_norm_weight[column], out.y *= scale * call.head_norm_weight[column + 1];
  }
  const int64_t at = (static_cast<int64_t>(merge.row) * call.n_heads + head) * kDim + column;
  if (call.out_is_bf16) {
    *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(call.out) + at) = ptx::PackBf16(out.x, out.y);
  } else {
    *reinterpret_cast<float2*>(static_cast<float*>(call.out) + at) = out;
  }
}

}  // namespace

cudaError_t LaunchRowsCombine(const RowsCombineCall& call, cudaStream_t stream) {
  if (call.n_merges == 0) return cudaSuccess;
  const dim3 grid(call.n_merges, (call.n_heads + kWarps - 1) / kWarps);
  const OverlappedLaunch launch(grid, kWarps * 32, 0, stream, true);
  return cudaLaunchKernelEx(launch.config(), &CombineRows, call);
}

}  // namespace t6::cuda
