// Tensor maps of matrices of bfloat16 in device memory, copied as boxes of 64 columns, swizzled unless asked
// for otherwise.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace t6::cuda {

// The driver's function, by name through the runtime, so that nothing links against the driver. Null where
// it has none.
inline decltype(&cuTensorMapEncodeTiled) TensorMapEncoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                               cudaEnableDefault, &found);
    const bool exists = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return exists ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function) : nullptr;
  }();
  return encoder;
}

// An array of kRank dimensions, the innermost first, contiguous; strides in bytes of the others, multiples of
// 16. The innermost dimension of a box has 64 numbers. What lies past the end of a dimension reads as zero.
// Fails where the driver cannot describe it.
template <int kRank>
cudaError_t MakeTensorMap(const void* array, const cuuint64_t (&sizes)[kRank],
                          const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank],
                          CUtensorMap* map, bool swizzles = true) {
  const auto encode = TensorMapEncoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<void*>(array),
                                 sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 swizzles ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                                 CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// A matrix [rows][columns], rows `stride` numbers apart; boxes of box_rows x 64.
inline cudaError_t MakeTensorMap(const void* matrix, int64_t rows, int columns, int stride, int box_rows,
                                 CUtensorMap* map, bool swizzles = true) {
  return MakeTensorMap<2>(matrix, {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                          {static_cast<cuuint64_t>(stride) * 2}, {64, static_cast<cuuint32_t>(box_rows)}, map,
                          swizzles);
}
inline cudaError_t MakeTensorMap(const void* matrix, int64_t rows, int columns, int box_rows,
                                 CUtensorMap* map) {
  return MakeTensorMap(matrix, rows, columns, columns, box_rows, map);
}

}  // namespace t6::cuda
