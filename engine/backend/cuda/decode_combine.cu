#include "engine/backend/cuda/decode_combine.h"
#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {
namespace {

constexpr int kLoads = 5;  // partials that a thread asks for before it uses the first
constexpr float kNoMax = -1e30f;

struct CombineParams {
  const DecodeSequence* sequences;
  DecodePartials partials;
  float* out;
  const float* head_norm_weight;  // null: no norm
  float head_norm_eps;
  int n_heads;
  float rank;  // R_V
};

// A sum of weighted values with the weights' sum, relative to a maximum.
struct Running {
  float max = kNoMax, sum = 0.0f;
  float4 out = {0.0f, 0.0f, 0.0f, 0.0f};

  __device__ void Add(float other_max, float other_sum, const float4& o) {
    const float most = fmaxf(max, other_max);
    const float mine = ptx::Exp2(max - most), other = ptx::Exp2(other_max - most);
    max = most;
    sum = sum * mine + other_sum * other;
    out.x = out.x * mine + o.x * other, out.y = out.y * mine + o.y * other;
    out.z = out.z * mine + o.z * other, out.w = out.w * mine + o.w * other;
  }
};

// One block per (head, sequence); a thread has four columns of every n_lanes-th partial. The order of every
// addition is fixed by the number of partials and the block's size alone.
template <int kDim, int kThreads>
__global__ void __launch_bounds__(kThreads) CombinePartials(const __grid_constant__ CombineParams p) {
  constexpr int kQuads = kDim / 4, kLanes = kThreads / kQuads;
  __shared__ Running shared[kLanes][kQuads];
  ptx::LetDependentsLaunch();
  const DecodeSequence sequence = p.sequences[blockIdx.y];
  ptx::WaitForPriorKernels();
  if (sequence.n_segments == 0 || (sequence.n_segments == 1 && p.head_norm_weight == nullptr)) return;

  const int head = blockIdx.x, quad = threadIdx.x % kQuads, lane = threadIdx.x / kQuads;
  Running own;
  for (int base = lane; base < sequence.n_segments; base += kLanes * kLoads) {
    float2 ms[kLoads];
    float4 o[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = base + i * kLanes;
      const int64_t slot = static_cast<int64_t>(sequence.first_segment + k) * p.n_heads + head;
      const bool exists = k < sequence.n_segments;
      ms[i] = exists ? p.partials.max_sum[slot] : make_float2(kNoMax, 0.0f);
      o[i] = exists ? reinterpret_cast<const float4*>(p.partials.out + slot * kDim)[quad]
                    : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) own.Add(ms[i].x, ms[i].y, o[i]);
  }
  shared[lane][quad] = own;
  __syncthreads();
  if (lane != 0) return;
  for (int i = 1; i < kLanes; ++i) {
    const Running other = shared[i][quad];
    own.Add(other.max, other.sum, other.out);
  }
  const float scale = 1.0f / (own.sum * p.rank);
  float4 out = {own.out.x * scale, own.out.y * scale, own.out.z * scale, own.out.w * scale};
  if (p.head_norm_weight != nullptr) {
    float squares = out.x * out.x + out.y * out.y + out.z * out.z + out.w * out.w;
#pragma unroll
    for (int i = kQuads / 2; i > 0; i /= 2)
      squares += __shfl_xor_sync(kQuads == 32 ? ~0u : (1u << kQuads) - 1, squares, i);
    const float factor = rsqrtf(squares / kDim + p.head_norm_eps);
    const float4 w = reinterpret_cast<const float4*>(p.head_norm_weight)[quad];
    out = {out.x * factor * w.x, out.y * factor * w.y, out.z * factor * w.z, out.w * factor * w.w};
  }
  const int64_t row = static_cast<int64_t>(sequence.row) * p.n_heads + head;
  reinterpret_cast<float4*>(p.out + row * kDim)[quad] = out;
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
  launch.numAttrs = 1;
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
  return cudaLaunchKernelExC(&launch, kernel, arguments);
}

}  // namespace t6::cuda
