#include <algorithm>

#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/split_block.cuh"
#include "engine/backend/cuda/split_product.h"
#include "engine/backend/cuda/tensor_map.h"

namespace t6::cuda {
namespace {

constexpr int kChunk = SplitParams::kChunk;
// So that the next kernel's blocks stand beside this one's, with their first weights: half of a
// multiprocessor's shared memory, less what the driver and the block's barriers take.
constexpr int kSharedBytes = 228 * 1024 / 2 - 1024 - 1024;

template <int kRows, int kGroups, Epilogue kEpilogue>
__global__ void __launch_bounds__(kGroups * 128 + 64, 2)
    SplitProduct(const __grid_constant__ SplitParams p, const __grid_constant__ CUtensorMap weights,
                 const __grid_constant__ CUtensorMap inputs) {
#if T6_PTX_HAS_SM90
  using Block = SplitBlock<kRows, kGroups, kEpilogue>;
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ typename Block::Shared shared;
  Block(p, shared, ring).Run(&weights, &inputs);
#endif
}

using Kernel = void (*)(SplitParams, CUtensorMap, CUtensorMap);

template <int kRows, int kGroups>
Kernel Choose(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::kSwiGlu:
      return &SplitProduct<kRows, kGroups, Epilogue::kSwiGlu>;
    case Epilogue::kAdd:
      return &SplitProduct<kRows, kGroups, Epilogue::kAdd>;
    default:
      return &SplitProduct<kRows, kGroups, Epilogue::kStore>;
  }
}

// Gate's rows and up's by eights: a thread's sums then have both of a column.
cudaError_t MapWeights(const SkinnyCall& call, int tile_columns, CUtensorMap* map) {
  const auto k = static_cast<cuuint64_t>(call.k_stride), row_bytes = k * 2;
  if (call.epilogue == Epilogue::kSwiGlu) {
    return MakeTensorMap<4>(call.weight, {k, 8, 2, static_cast<cuuint64_t>(call.up_row) / 8},
                            {row_bytes, call.up_row * row_bytes, 8 * row_bytes},
                            {kChunk, 8, 2, static_cast<cuuint32_t>(tile_columns) / 16}, map);
  }
  return MakeTensorMap(call.weight, (call.n + 63) / 64 * 64, call.k_stride, tile_columns, map);
}

}  // namespace

// One and a half blocks for each multiprocessor, measured on an H200: what a block has asked for and waits
// for is bound by its shared memory, and two fit.
SplitShape SplitShape::Make(int n_weights, int k, int n_sms) {
  SplitShape shape;
  if ((n_weights + 63) / 64 > n_sms) shape.tile_columns = 128;
  const int tiles = (n_weights + shape.tile_columns - 1) / shape.tile_columns;
  const int most = std::min(kMostSplits, (k + kChunk - 1) / kChunk);
  shape.n_splits = std::clamp((3 * n_sms + tiles) / (2 * tiles), 1, most);
  return shape;
}

cudaError_t LaunchSplitProduct(const SkinnyCall& call, const SplitShape& shape, cudaStream_t stream) {
  if (call.n_rows == 0 || call.n == 0) return cudaSuccess;
  const int groups = shape.tile_columns / 64, rows = call.n_rows <= 32 ? 32 : 64;
  const Kernel kernel = rows == 32
                            ? (groups == 1 ? Choose<32, 1>(call.epilogue) : Choose<32, 2>(call.epilogue))
                            : (groups == 1 ? Choose<64, 1>(call.epilogue) : Choose<64, 2>(call.epilogue));
  CUtensorMap weights, inputs;
  cudaError_t error = MapWeights(call, shape.tile_columns, &weights);
  if (error != cudaSuccess) return error;
  error = MakeTensorMap(call.in, call.n_rows, call.k, call.in_stride, rows, &inputs);
  if (error != cudaSuccess) return error;

  const int n_threads = groups * 128 + 64, stage_bytes = groups * 64 * 128 + rows * 128;
  const int received =
      (shape.n_splits - 1) * ((rows / 8 + shape.n_splits - 1) / shape.n_splits) * groups * 128 * 16;
  const int n_chunks = call.k_stride / kChunk, row_groups = rows / 8;
  SplitParams params;
  params.call = call, params.n_splits = shape.n_splits;
  params.each_chunks = n_chunks / shape.n_splits, params.more_chunks = n_chunks % shape.n_splits;
  params.each_groups = row_groups / shape.n_splits, params.more_groups = row_groups % shape.n_splits;
  params.pairs =
      call.n % 2 == 0 && call.out_stride % 2 == 0 && reinterpret_cast<uintptr_t>(call.out) % 8 == 0;
  const int most_chunks = params.each_chunks + (params.more_chunks > 0 ? 1 : 0);
  params.n_stages =
      std::min({SplitParams::kMostStages, most_chunks, (kSharedBytes - received) / stage_bytes});
  const int sums = rows / 8 * groups * 128 * 16;  // of the block itself, in the ring when it is free
  params.received = std::max(params.n_stages * stage_bytes, sums);
  const int shared_bytes = params.received + received;
  error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  const int weight_rows = call.epilogue == Epilogue::kSwiGlu ? 2 * call.n : call.n;
  const int tiles = (weight_rows + shape.tile_columns - 1) / shape.tile_columns;
  return LaunchOverlappedClusters(kernel, dim3(shape.n_splits, tiles), dim3(shape.n_splits), n_threads,
                                  shared_bytes, stream, params, weights, inputs);
}

}  // namespace t6::cuda
