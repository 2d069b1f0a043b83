// The bytes of a page: 64 tokens of one layer, as a table of parts. The same on every tier (device, host,
// disk). For T6:  B_K [R_K][64][d] | A_K [R_K][h][64] | B_V [R_V][64][d] | A_V [R_V][h][64] B_K is stored
// rotated. A is token-minor, so that each (rank, head) row is 64 numbers whatever the head count. In fp8 a
// part more stands behind A_K and behind A_V, the scales [R][64]: engine/backend/fp8_scale.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/backend/attention_spec.h"
#include "engine/tensor/dtype.h"

namespace t6 {

enum class PartName : uint8_t { kBK, kAK, kSK, kBV, kAV, kSV };

struct PagePart {
  PartName name;
  int ranks;  // R
  int rows;   // rows of one rank: 64 (B: one a token), h (A: one a head) or 1 (scales)
  int width;  // numbers in a row: d (B) or 64 (A, scales)
  DType dtype;
  bool token_minor;  // a row holds 64 tokens, instead of being one
  size_t offset;     // bytes from the page's first byte; a multiple of 128
  size_t bytes;      // padded to a multiple of 128
};

class PageLayout {
 public:
  // dtype: kF32, kBF16 or kFp8.
  PageLayout(const AttentionSpec& spec, DType dtype);

  const std::vector<PagePart>& parts() const { return parts_; }
  const PagePart& part(PartName name) const;
  size_t page_bytes() const { return page_bytes_; }  // one layer's
  DType dtype() const { return dtype_; }

 private:
  std::vector<PagePart> parts_;
  size_t page_bytes_ = 0;
  DType dtype_;
};

}  // namespace t6
