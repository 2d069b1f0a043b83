// A view of host memory: type, shape, first byte. Dense, row-major, owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/tensor/dtype.h"

namespace t6 {

struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  int64_t n_elements() const;
  size_t n_bytes() const { return static_cast<size_t>(n_elements()) * SizeOf(dtype); }
  std::string ShapeString() const;  // "[13, 64]"
};

// Widens (or copies) `n` elements of f32, f16 or bf16 into float. Exact.
void ConvertToFloat(const void* src, DType type, int64_t n, float* dst);
// Rounds `n` floats into bf16.
void ConvertToBf16(const float* src, int64_t n, bf16* dst);

}  // namespace t6
