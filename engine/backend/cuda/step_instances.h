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
  bool meets = false;       // all blocks, before the next operation
  int32_t n_sequences = 0;  // kCombine: of which some may have nothing to add
  SkinnyCall product;
  ProductShape shape;  // of the product
  ProductLinks links;
  DecodeParams decode{};
  CombineParams combine{};
};
struct StepInstruction {
  StepOperation operation;
  PageMaps maps;  // kAttend
};

// What blocks hand over between two meetings lies in one space, the next in the next: three, so that one can
// be cleared while the two others are in use.
inline constexpr int kStepSpaces = 3;
inline constexpr int kKeeperCount = 32, kStepCounts = 64;  // counters a line apart

struct StepLaunch {
  const StepInstruction* program;
  int n_instructions;
  int n_meetings;              // as many as there is attention
  int first_attention;         // its instruction, or -1
  uint32_t* counts;            // [kStepCounts], 0 between launches
  const int32_t* n_rows;       // [1] rows that exist, of those of the operations
  uint4* places[kStepSpaces];  // [n_places]
  int n_places;
  DecodePartials partials[kStepSpaces];
  int ring_bytes;
  uint64_t* clocks;  // null, or [n_instructions + 1]: see OperationTimer
};

struct StepInstance {
  int rank, head_dim, warp_tokens;
  int n_warps;                         // that do the operations; two more beside them
  std::array<const void*, 2> kernels;  // to 2 and to 8 rows
  int n_threads() const { return (n_warps + 2) * 32; }
};

template <int kRank>
std::span<const StepInstance> StepInstances();
template <>
std::span<const StepInstance> StepInstances<1>();
template <>
std::span<const StepInstance> StepInstances<2>();

}  // namespace t6::cuda
