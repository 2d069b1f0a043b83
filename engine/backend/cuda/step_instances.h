// A step's program as the device reads it, and the compiled kernels that run it: of the decode kernels'
// shapes those that published models have.
#pragma once

#include <array>
#include <span>

#include "engine/backend/cuda/decode_combine.cuh"
#include "engine/backend/cuda/decode_params.cuh"
#include "engine/backend/cuda/product_shape.h"

namespace t6::cuda {

struct alignas(16) StepOperation {
  enum Kind : int32_t { kProduct, kAttend, kCombine };
  Kind kind = kProduct;
  int32_t n_sequences = 0;  // kCombine: of which some may have nothing to add
  SkinnyCall product;
  ProductShape shape;  // of the product
  DecodeParams decode{};
  CombineParams combine{};
};
struct StepInstruction {
  StepOperation operation;
  PageMaps maps;  // kAttend
};

struct StepLaunch {
  const StepInstruction* program;
  int n_instructions;
  uint32_t* count;  // [1], 0 between launches
  int ring_bytes;
  uint64_t* clocks;  // null, or [n_instructions + 1]: see OperationTimer
};

struct StepInstance {
  int rank, head_dim, warp_tokens;
  int n_threads;
  std::array<const void*, 2> kernels;  // to 8 and to 16 rows
};

template <int kRank>
std::span<const StepInstance> StepInstances();
template <>
std::span<const StepInstance> StepInstances<1>();
template <>
std::span<const StepInstance> StepInstances<2>();

}  // namespace t6::cuda
