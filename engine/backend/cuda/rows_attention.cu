#include <algorithm>

#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/rows_attention.h"
#include "engine/backend/cuda/tensor_map.h"

namespace t6::cuda {
namespace {

std::span<const RowsInstance> InstancesOfRank(int rank) {
  switch (rank) {
    case 1:
      return RowsInstancesOfRank1();
    case 2:
      return RowsInstancesOfRank2();
    case 3:
      return RowsInstancesOfRank3();
    case 4:
      return RowsInstancesOfRank4();
    default:
      return {};
  }
}

}  // namespace

const RowsInstance* FindRowsInstance(int rank, int head_dim, int width) {
  for (const RowsInstance& instance : InstancesOfRank(rank)) {
    if (instance.head_dim == head_dim && instance.width == width) return &instance;
  }
  return nullptr;
}

cudaError_t MakeRowsPageMaps(const RowsInstance& instance, const DecodeShape& shape, const void* pages,
                             int64_t n_pages, RowsMaps* maps) {
  const int64_t rows = n_pages * 2 * shape.half_rows();
  const cudaError_t error = MakeTensorMap(
      pages, rows, 64, std::min(shape.rank * shape.head_dim / instance.cluster, 256), &maps->factors);
  if (error != cudaSuccess) return error;
  return MakeTensorMap(pages, rows, 64, 64, instance.block_heads, &maps->heads, false);
}

cudaError_t LaunchRows(const RowsInstance& instance, const RowsParams& params, const RowsMaps& maps,
                       int n_blocks, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(instance.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 instance.shared_bytes);
  if (error != cudaSuccess) return error;
  const OverlappedLaunch launch(dim3(n_blocks / instance.cluster * instance.cluster), instance.n_threads,
                                instance.shared_bytes, stream, true, dim3(instance.cluster));
  RowsParams p = params;
  RowsMaps m = maps;
  void* arguments[] = {&p, &m};
  return cudaLaunchKernelExC(launch.config(), instance.kernel, arguments);
}

}  // namespace t6::cuda
