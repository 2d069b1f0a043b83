#include <algorithm>

#include "engine/backend/cuda/decode_combine.cuh"
#include "engine/backend/cuda/decode_combine.h"
#include "engine/backend/cuda/launch.cuh"

namespace t6::cuda {
namespace {

constexpr int kManySequences = 16;

// One block per (head, sequence).
template <int kDim, int kThreads>
__global__ void __launch_bounds__(kThreads) CombinePartials(const __grid_constant__ CombineParams p) {
  __shared__ typename Combiner<kDim, kThreads>::Shared shared;
  ptx::LetDependentsLaunch();
  const DecodeSequence sequence = p.sequences[blockIdx.y];
  ptx::WaitForPriorKernels();
  Combiner<kDim, kThreads>::Run(p, sequence, blockIdx.x, threadIdx.x, shared, [] { __syncthreads(); });
}

// A warp per (head, sequence), where sequences are many and have few partials each.
constexpr int kItemWarps = 4;
template <int kDim>
__global__ void __launch_bounds__(kItemWarps * 32)
    CombineManyPartials(const __grid_constant__ CombineParams p, int n_items) {
  __shared__ typename Combiner<kDim, 32>::Shared shared[kItemWarps];
  ptx::LetDependentsLaunch();
  const int warp = threadIdx.x / 32, item = blockIdx.x * kItemWarps + warp;
  const DecodeSequence sequence = item < n_items ? p.sequences[item / p.n_heads] : DecodeSequence{};
  ptx::WaitForPriorKernels();
  Combiner<kDim, 32>::Run(p, sequence, item % p.n_heads, threadIdx.x % 32, shared[warp],
                          [] { __syncwarp(); });
}

template <int kDim>
const void* CombineKernel(int n_threads) {
  if (n_threads == 32) return reinterpret_cast<const void*>(&CombineManyPartials<kDim>);
  return n_threads == 512 ? reinterpret_cast<const void*>(&CombinePartials<kDim, 512>)
                          : reinterpret_cast<const void*>(&CombinePartials<kDim, 128>);
}

}  // namespace

CombineParams MakeCombineParams(const DecodeCall& call) {
  const DecodeShape& shape = call.config->shape;
  return {.sequences = call.plan.sequences,
          .partials = call.partials,
          .out = call.out,
          .head_norm_weight = shape.head_norm ? call.head_norm_weight : nullptr,
          .head_norm_eps = shape.head_norm_eps,
          .n_heads = shape.n_heads,
          .rank = static_cast<float>(shape.rank)};
}

cudaError_t LaunchDecodeCombine(const DecodeCall& call, cudaStream_t stream) {
  const DecodeShape& shape = call.config->shape;
  // A lone sequence has a partial from every block; among many, each has few.
  const bool fixed = call.plan.fixed_split_pages > 0;
  const int n_threads = fixed                                 ? 128
                        : call.max_sequences == 1             ? 512
                        : call.max_sequences < kManySequences ? 128
                                                              : 32;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  int n_items = shape.n_heads * call.max_sequences;
  launch.gridDim = n_threads == 32 ? dim3((n_items + kItemWarps - 1) / kItemWarps)
                                   : dim3(shape.n_heads, call.max_sequences);
  launch.blockDim = dim3(std::max(n_threads, kItemWarps * 32));
  launch.stream = stream;
  launch.attrs = &overlap;
  launch.numAttrs = call.config->portable ? 0 : 1;
  CombineParams params = MakeCombineParams(call);
  void* arguments[] = {&params, &n_items};  // a block per item takes the first
  const void* kernel = shape.head_dim == 32   ? CombineKernel<32>(n_threads)
                       : shape.head_dim == 64 ? CombineKernel<64>(n_threads)
                                              : CombineKernel<128>(n_threads);
  const cudaError_t error = PreferShared(kernel);
  return error != cudaSuccess ? error : cudaLaunchKernelExC(&launch, kernel, arguments);
}

}  // namespace t6::cuda
