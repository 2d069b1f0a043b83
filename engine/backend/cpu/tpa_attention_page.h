// What both kinds of attention task need: a worker's scratch in pieces, and a page's parts as padded rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

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

// One page's parts, of run.kernels->page type.
struct PageView {
  const uint8_t *bk, *ak, *bv, *av;
};

// bfloat16 numbers that a page holds.
inline size_t PageNumbers(const AttentionShape& s) {
  return static_cast<size_t>(s.rank_k + s.rank_v) * 64 * (s.d + s.h);
}

// The page where it lies; one in fp8 is widened into `buffer` [PageNumbers], A for heads [first_head,
// head_end) alone.
inline PageView ViewPage(const AttentionRun& run, int32_t id, int first_head, int head_end, bf16* buffer) {
  const LayerPages& pages = run.params->pages;
  T6_DCHECK(id >= 0 && id < pages.n_pages, "page {} of {}", id, pages.n_pages);
  const uint8_t* base = pages.base + static_cast<size_t>(id) * pages.layout->page_bytes();
  const auto at = [&](PartName name) { return base + pages.layout->part(name).offset; };
  if (pages.layout->dtype() != DType::kFp8)
    return {at(PartName::kBK), at(PartName::kAK), at(PartName::kBV), at(PartName::kAV)};
  const int h = run.shape->h, d = run.shape->d;
  const auto widen_b = [&](PartName name, int ranks) {
    run.kernels->widen_fp8({.in = at(name), .rows = ranks * d, .out = buffer});  // 64 tokens: rows of 64
    return reinterpret_cast<const uint8_t*>(std::exchange(buffer, buffer + ranks * d * 64));
  };
  const auto widen_a = [&](PartName name, PartName scales, int ranks) {
    for (int r = 0; r < ranks; ++r) {
      const int begin = (r * h + first_head) * 64;
      run.kernels->widen_fp8({.in = at(name) + begin,
                              .scales = reinterpret_cast<const float*>(at(scales)) + r * 64,
                              .rows = head_end - first_head,
                              .out = buffer + begin});
    }
    return reinterpret_cast<const uint8_t*>(std::exchange(buffer, buffer + ranks * h * 64));
  };
  PageView view{};
  view.bk = widen_b(PartName::kBK, run.shape->rank_k);
  view.ak = widen_a(PartName::kAK, PartName::kSK, run.shape->rank_k);
  view.bv = widen_b(PartName::kBV, run.shape->rank_v);
  view.av = widen_a(PartName::kAV, PartName::kSV, run.shape->rank_v);
  return view;
}

// Rows [n_ranks][64][d] of a page as [n_ranks][64][dp] with zeros from `valid` on: a copy only where they are
// not so yet.
inline const void* PaddedRows(const AttentionRun& run, const uint8_t* rows, int n_ranks, int valid,
                              void* buffer) {
  const int d = run.shape->d, dp = run.shape->dp;
  if (valid == 64 && d == dp) return rows;
  const size_t element = SizeOf(run.kernels->page);
  auto* out = static_cast<uint8_t*>(buffer);
  if (d == dp) {  // a rank's rows are one piece
    const size_t bytes = static_cast<size_t>(valid) * d * element, rank_bytes = 64 * d * element;
    for (int r = 0; r < n_ranks; ++r, out += rank_bytes) {
      std::memcpy(out, rows + r * rank_bytes, bytes);
      std::memset(out + bytes, 0, rank_bytes - bytes);
    }
    return buffer;
  }
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
