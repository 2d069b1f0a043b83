// What both kinds of attention task need: a worker's scratch in pieces, and a page's parts as padded rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/backend/cpu/tpa_attention_tasks.h"
#include "engine/base/check.h"

namespace t6::cpu {

inline int RoundUp(int x, int step) { return (x + step - 1) / step * step; }

// Hands out pieces of a worker's scratch, in the same order as AttentionShape counts them.
class Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}
  template <typename T>
  T* Take(size_t n) {
    uint8_t* p = base_ + used_;
    used_ += (n * sizeof(T) + 127) / 128 * 128;
    return reinterpret_cast<T*>(p);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

// One page's parts.
struct PageView {
  PageView(const LayerPages& pages, int32_t id) {
    T6_DCHECK(id >= 0 && id < pages.n_pages, "page {} of {}", id, pages.n_pages);
    const uint8_t* base = pages.base + static_cast<size_t>(id) * pages.layout->page_bytes();
    bk = base + pages.layout->part(PartName::kBK).offset,
    ak = base + pages.layout->part(PartName::kAK).offset;
    bv = base + pages.layout->part(PartName::kBV).offset,
    av = base + pages.layout->part(PartName::kAV).offset;
  }
  const uint8_t *bk, *ak, *bv, *av;
};

// Rows [n_ranks][64][d] of a page as [n_ranks][64][dp] with zeros from `valid` on: a copy only where they are
// not so yet.
inline const void* PaddedRows(const AttentionRun& run, const uint8_t* rows, int n_ranks, int valid,
                              void* buffer) {
  const int d = run.shape->d, dp = run.shape->dp;
  if (valid == 64 && d == dp) return rows;
  const size_t element = SizeOf(run.kernels->page);
  auto* out = static_cast<uint8_t*>(buffer);
  for (int r = 0; r < n_ranks; ++r) {
    for (int t = 0; t < 64; ++t, out += dp * element) {
      const size_t bytes = t < valid ? d * element : 0;
      if (bytes != 0) std::memcpy(out, rows + (static_cast<size_t>(r) * 64 + t) * d * element, bytes);
      std::memset(out + bytes, 0, dp * element - bytes);
    }
  }
  return buffer;
}

// Tokens of the page that a row at `position` attends to.
inline int Visible(int position, int page) {
  return std::clamp(position + 1 - page * kPageTokens, 0, kPageTokens);
}

inline const uint8_t* At(const void* operand, size_t index, DType type) {
  return static_cast<const uint8_t*>(operand) + index * SizeOf(type);
}

}  // namespace t6::cpu
