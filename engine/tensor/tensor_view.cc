#include "engine/tensor/tensor_view.h"

#include <fmt/ranges.h>

#include "engine/base/check.h"

namespace t6 {

int64_t TensorView::n_elements() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

std::string TensorView::ShapeString() const { return fmt::format("[{}]", fmt::join(shape, ", ")); }

void ConvertToFloat(const void* src, DType type, int64_t n, float* dst) {
  switch (type) {
    case DType::kF32:
      std::memcpy(dst, src, static_cast<size_t>(n) * 4);
      return;
    case DType::kBF16: {
      const auto* s = static_cast<const bf16*>(src);
      for (int64_t i = 0; i < n; ++i) dst[i] = ToFloat(s[i]);
      return;
    }
    case DType::kF16: {
      const auto* s = static_cast<const f16*>(src);
      for (int64_t i = 0; i < n; ++i) dst[i] = ToFloat(s[i]);
      return;
    }
    case DType::kI32:
    case DType::kFp8:
      break;
  }
  T6_CHECK(false, "no conversion from {}", NameOf(type));
}

void ConvertToBf16(const float* src, int64_t n, bf16* dst) {
  for (int64_t i = 0; i < n; ++i) dst[i] = ToBf16(src[i]);
}

}  // namespace t6
