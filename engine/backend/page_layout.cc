#include "engine/backend/page_layout.h"

#include <cmath>

#include "engine/base/check.h"

namespace t6 {

float AttentionSpec::logit_scale() const {
  // Q = A_Q B_Q / R_Q and K = A_K B_K / R_K (arXiv 2501.06425, eq. 3.1); one-hot heads pick one rank, no
  // mean.
  double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  if (!full_query && q.a != HeadFactor::kOneHot) scale /= q.rank;
  if (k.a != HeadFactor::kOneHot) scale /= k.rank;
  return static_cast<float>(scale);
}

PageLayout::PageLayout(const AttentionSpec& spec, DType dtype) : dtype_(dtype) {
  T6_CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kFp8);
  const auto add = [&](PartName name, int ranks, int rows, int width, DType type, bool token_minor) {
    const size_t bytes = static_cast<size_t>(ranks) * rows * width * SizeOf(type);
    const size_t padded = (bytes + 127) / 128 * 128;
    parts_.push_back({name, ranks, rows, width, type, token_minor, page_bytes_, padded});
    page_bytes_ += padded;
  };
  const auto add_factor = [&](const FactorSpec& factor, PartName b, PartName a, PartName scales) {
    if (factor.b == DimFactor::kContextual) add(b, factor.rank, kPageTokens, spec.head_dim, dtype, false);
    if (factor.a == HeadFactor::kContextual) add(a, factor.rank, spec.n_heads, kPageTokens, dtype, true);
    if (dtype == DType::kFp8) add(scales, factor.rank, 1, kPageTokens, DType::kF32, true);
  };
  add_factor(spec.k, PartName::kBK, PartName::kAK, PartName::kSK);
  add_factor(spec.v, PartName::kBV, PartName::kAV, PartName::kSV);
}

const PagePart& PageLayout::part(PartName name) const {
  for (const PagePart& part : parts_) {
    if (part.name == name) return part;
  }
  T6_CHECK(false, "this layout has no part {}", static_cast<int>(name));
}

}  // namespace t6
