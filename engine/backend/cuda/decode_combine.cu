#include "engine/backend/cuda/decode_combine.h"
#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {
namespace {

constexpr int kLoads = 5;  // partials that a thread asks for before it uses the first
constexpr float kNoMax = -1e30f;

struct CombineParams {
  const DecodeSequence* sequences;
  DecodePartials partials;
  AttentionOutput out;
  const float* head_norm_weight;  // null: no norm
  float head_norm_eps;
  int n_heads;
  float rank;  // R_V
};

// A thread's share of a sum of weighted values, relative to a maximum.
struct Running {
  float max = kNoMax, sum = 0.0f;
  float4 out = {0.0f, 0.0f, 0.0f, 0.0f};

  __device__ void ScaleTo(float most) {
    const float factor = ptx::Exp2(max - most);
    max = most, sum *= factor;
    out.x *= factor, out.y *= factor, out.z *= factor, out.w *= factor;
  }
  // All at once, so that their powers do not wait for each other.
  __device__ void Add(const float2 (&max_sum)[kLoads], const float4 (&o)[kLoads]) {
    float most = max;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) most = fmaxf(most, max_sum[i].x);
    ScaleTo(most);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const float factor = ptx::Exp2(max_sum[i].x - most);
      sum = fmaf(factor, max_sum[i].y, sum);
      out.x = fmaf(factor, o[i].x, out.x), out.y = fmaf(factor, o[i].y, out.y);
      out.z = fmaf(factor, o[i].z, out.z), out.w = fmaf(factor, o[i].w, out.w);
    }
  }
};

// One block per (head, sequence); a thread has four columns of every kLanes-th partial. The order of every
// addition is fixed by the number of partials and the block's size alone.
template <int kDim, int kThreads>
__global__ void __launch_bounds__(kThreads) CombinePartials(const __grid_constant__ CombineParams p) {
  constexpr int kQuads = kDim / 4, kLanes = kThreads / kQuads, kNormWarps = kDim / 32;
  __shared__ float maxima[kLanes], sums[kLanes], squares[kNormWarps];
  __shared__ float4 outs[kLanes][kQuads];
  ptx::LetDependentsLaunch();
  const DecodeSequence sequence = p.sequences[blockIdx.y];
  ptx::WaitForPriorKernels();
  if (sequence.n_segments == 0 || (sequence.n_segments == 1 && p.head_norm_weight == nullptr)) return;

  const int head = blockIdx.x, quad = threadIdx.x % kQuads, lane = threadIdx.x / kQuads;
  Running own;
  for (int base = lane; base < sequence.n_segments; base += kLanes * kLoads) {
    float2 max_sum[kLoads];
    float4 o[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = base + i * kLanes;
      const int64_t slot = static_cast<int64_t>(sequence.first_segment + k) * p.n_heads + head;
      const bool exists = k < sequence.n_segments;
      max_sum[i] = exists ? p.partials.max_sum[slot] : make_float2(kNoMax, 0.0f);
      o[i] = exists ? reinterpret_cast<const float4*>(p.partials.out + slot * kDim)[quad]
                    : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    own.Add(max_sum, o);
  }
  if (quad == 0) maxima[lane] = own.max;
  __syncthreads();
  float most = kNoMax;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) most = fmaxf(most, maxima[i]);
  own.ScaleTo(most);
  outs[lane][quad] = own.out;
  if (quad == 0) sums[lane] = own.sum;
  __syncthreads();

  // From here a thread has one column.
  const int column = threadIdx.x;
  float value = 0.0f, total = 0.0f;
  if (column < kDim) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      value += reinterpret_cast<const float*>(outs[i])[column];
      total += sums[i];
    }
    value /= total * p.rank;
  }
  if (p.head_norm_weight != nullptr) {
    float square = value * value;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
    if (column < kDim && column % 32 == 0) squares[column / 32] = square;
    __syncthreads();
    if (column >= kDim) return;
    square = 0.0f;
#pragma unroll
    for (int i = 0; i < kNormWarps; ++i) square += squares[i];
    value *= rsqrtf(square / kDim + p.head_norm_eps) * p.head_norm_weight[column];
  }
  if (column < kDim) {
    p.out.Store((static_cast<int64_t>(sequence.row) * p.n_heads + head) * kDim + column, value);
  }
}

template <int kDim>
const void* CombineKernel(int n_threads) {
  return n_threads == 512 ? reinterpret_cast<const void*>(&CombinePartials<kDim, 512>)
                          : reinterpret_cast<const void*>(&CombinePartials<kDim, 128>);
}

}  // namespace

cudaError_t LaunchDecodeCombine(const DecodeCall& call, cudaStream_t stream) {
  const DecodeShape& shape = call.config->shape;
  // A lone sequence has a partial from every block; among many, each has few.
  const int n_threads = call.max_sequences == 1 && call.plan.fixed_split_pages == 0 ? 512 : 128;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(shape.n_heads, call.max_sequences);
  launch.blockDim = dim3(n_threads);
  launch.stream = stream;
  launch.attrs = &overlap;
  launch.numAttrs = call.config->portable ? 0 : 1;
  CombineParams params{.sequences = call.plan.sequences,
                       .partials = call.partials,
                       .out = call.out,
                       .head_norm_weight = shape.head_norm ? call.head_norm_weight : nullptr,
                       .head_norm_eps = shape.head_norm_eps,
                       .n_heads = shape.n_heads,
                       .rank = static_cast<float>(shape.rank)};
  void* arguments[] = {&params};
  const void* kernel = shape.head_dim == 32   ? CombineKernel<32>(n_threads)
                       : shape.head_dim == 64 ? CombineKernel<64>(n_threads)
                                              : CombineKernel<128>(n_threads);
  const cudaError_t error = PreferShared(kernel);
  return error != cudaSuccess ? error : cudaLaunchKernelExC(&launch, kernel, arguments);
}

}  // namespace t6::cuda
