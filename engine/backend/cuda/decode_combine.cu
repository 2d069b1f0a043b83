#include "engine/backend/cuda/decode_combine.cuh"
#include "engine/backend/cuda/decode_combine.h"
#include "engine/backend/cuda/launch.cuh"

namespace t6::cuda {
namespace {

constexpr int kManySequences = 16;
constexpr int kAloneThreads = 512, kThreads = 128, kItemWarps = kThreads / 32;

// A block per (sequence, head, part of its columns).
template <int kDim, int kBlockThreads, int kParts>
__device__ void CombineHead(const CombineParams& p) {
  using Block = Combiner<kDim, kBlockThreads, kParts>;
  __shared__ typename Block::Shared shared;
  ptx::LetDependentsLaunch();
  const DecodeSequence sequence = p.sequences[blockIdx.y];
  ptx::WaitForPriorKernels();
  Block::Run(
      p, sequence, blockIdx.x / kParts, threadIdx.x, shared, [] { __syncthreads(); }, blockIdx.x % kParts);
}
// With 64 registers, 72 where a thread adds the most. Where decode's kernel leaves a multiprocessor room for
// one (DecodeAttentionConfig::combines_beside), all blocks wait there from its beginning, and the next decode
// kernel starts on every multiprocessor as soon as this one's block there is done.
template <int kDim, int kParts>
__global__ void __launch_bounds__(kThreads, kParts == 1 ? 7 : 8)
    CombinePartials(const __grid_constant__ CombineParams p) {
  static_assert(sizeof(typename Combiner<kDim, kThreads, kParts>::Shared) <= kCombineShared);
  CombineHead<kDim, kThreads, kParts>(p);
}
template <int kDim>
__global__ void __launch_bounds__(kAloneThreads)
    CombinePartialsAlone(const __grid_constant__ CombineParams p) {
  CombineHead<kDim, kAloneThreads, 1>(p);
}

// A warp per (sequence, head), where sequences are many and have few partials each.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 8)
    CombineManyPartials(const __grid_constant__ CombineParams p, int n_items) {
  using Warp = Combiner<kDim, 32>;
  __shared__ typename Warp::Shared shared[kItemWarps];
  ptx::LetDependentsLaunch();
  const int warp = threadIdx.x / 32, item = blockIdx.x * kItemWarps + warp;
  const DecodeSequence sequence = item < n_items ? p.sequences[item / p.n_heads] : DecodeSequence{};
  ptx::WaitForPriorKernels();
  Warp::Run(p, sequence, item % p.n_heads, threadIdx.x % 32, shared[warp], [] {});
}

struct CombineLaunch {
  const void* kernel;
  dim3 blocks;
  int n_threads;
};

// Fixed splits: the order of additions must not depend on the batch. A lone sequence has a partial from every
// block, so that many threads have work; beside decode they are as many blocks as one each multiprocessor.
template <int kDim>
CombineLaunch LaunchFor(const DecodeCall& call) {
  const int h = call.config->shape.n_heads, n = call.max_sequences, n_items = h * n;
  const auto parts = [&](const void* kernel, int n_parts) {
    return CombineLaunch{kernel, dim3(h * n_parts, n), kThreads};
  };
  const auto* whole = reinterpret_cast<const void*>(&CombinePartials<kDim, 1>);
  if (call.plan.fixed_split_pages > 0) return parts(whole, 1);
  if (n >= kManySequences) {
    return {reinterpret_cast<const void*>(&CombineManyPartials<kDim>),
            dim3((n_items + kItemWarps - 1) / kItemWarps), kThreads};
  }
  const int room = call.config->combines_beside ? call.config->n_blocks / n_items : 0;
  if (n == 1 && room == 0) {
    return {reinterpret_cast<const void*>(&CombinePartialsAlone<kDim>), dim3(h), kAloneThreads};
  }
  if (call.config->shape.head_norm || room < 2) return parts(whole, 1);
  return room >= 4 ? parts(reinterpret_cast<const void*>(&CombinePartials<kDim, 4>), 4)
                   : parts(reinterpret_cast<const void*>(&CombinePartials<kDim, 2>), 2);
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
  const CombineLaunch combine = shape.head_dim == 32   ? LaunchFor<32>(call)
                                : shape.head_dim == 64 ? LaunchFor<64>(call)
                                                       : LaunchFor<128>(call);
  CombineParams params = MakeCombineParams(call);
  int n_items = shape.n_heads * call.max_sequences;
  void* arguments[] = {&params, &n_items};  // a block per item takes the first
  OverlappedLaunch launch(combine.blocks, combine.n_threads, 0, stream, !call.config->portable);
  const cudaError_t error = PreferShared(combine.kernel);
  return error != cudaSuccess ? error : cudaLaunchKernelExC(launch.config(), combine.kernel, arguments);
}

}  // namespace t6::cuda
