// Products of rows with one packed block, written once for every vector width (see gemm_tile.h).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/gemm_rows.cc"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)  // too old to be worth their code
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>

#include "engine/backend/cpu/gemm_tile.h"

HWY_BEFORE_NAMESPACE();
namespace t6::cpu::HWY_NAMESPACE {
namespace {  // each file has its own

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, kBlockColumns>;
using V = hn::Vec<D>;

constexpr int Lanes() { return static_cast<int>(HWY_MIN(HWY_LANES(float), kBlockColumns)); }

// Sums of kRows rows and kVectors vectors of columns stay in registers over all of k.
template <int kRows, int kVectors>
void TileF32(const BlockProduct& p, int row, int column) {
  const D d;
  constexpr int kLanes = Lanes();
  const float* HWY_RESTRICT a = static_cast<const float*>(p.a) + row * p.a_stride;
  const float* HWY_RESTRICT b = static_cast<const float*>(p.b) + column;
  V sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  for (int k = 0; k < p.k_padded; ++k) {
    V w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = hn::LoadU(d, b + v * kLanes);
    b += kBlockColumns;
    for (int r = 0; r < kRows; ++r) {
      const V x = hn::Set(d, a[r * p.a_stride + k]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(x, w[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum[r][v], d, p.c + (row + r) * p.c_stride + column + v * kLanes);
    }
  }
}

// A pair of k is one 32-bit lane: the even one is its low half, so both widen by a shift or a mask.
template <int kRows, int kVectors>
void TileBf16(const BlockProduct& p, int row, int column) {
  const D d;
  const hn::RebindToUnsigned<D> du;
  constexpr int kLanes = Lanes();
  const uint16_t* HWY_RESTRICT a = static_cast<const uint16_t*>(p.a) + row * p.a_stride;
  const uint32_t* HWY_RESTRICT b = static_cast<const uint32_t*>(p.b) + column;
  const auto odd_half = hn::Set(du, 0xffff0000u);
  V sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  for (int k = 0; k < p.k_padded; k += 2) {
    V even[kVectors], odd[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const auto pair = hn::LoadU(du, b + v * kLanes);
      even[v] = hn::BitCast(d, hn::ShiftLeft<16>(pair));
      odd[v] = hn::BitCast(d, hn::And(pair, odd_half));
    }
    b += kBlockColumns;
    for (int r = 0; r < kRows; ++r) {
      const uint16_t* x = a + r * p.a_stride + k;
      const V x_even = hn::BitCast(d, hn::Set(du, static_cast<uint32_t>(x[0]) << 16));
      const V x_odd = hn::BitCast(d, hn::Set(du, static_cast<uint32_t>(x[1]) << 16));
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(x_even, even[v], sum[r][v]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(x_odd, odd[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum[r][v], d, p.c + (row + r) * p.c_stride + column + v * kLanes);
    }
  }
}

// One row reads whole cache lines in the order of memory; several rows share what is loaded, as far as
// registers go.
constexpr int kMaxVectors = kBlockColumns / Lanes();
constexpr bool kManyRegisters = HWY_TARGET == HWY_AVX3;

template <int kRows, int kVectors>
void ColumnsF32(const BlockProduct& p, int row) {
  constexpr int kWidth = HWY_MIN(kVectors, kMaxVectors);
  for (int column = 0; column < kBlockColumns; column += kWidth * Lanes())
    TileF32<kRows, kWidth>(p, row, column);
}

template <int kRows, int kVectors>
void ColumnsBf16(const BlockProduct& p, int row) {
  constexpr int kWidth = HWY_MIN(kVectors, kMaxVectors);
  for (int column = 0; column < kBlockColumns; column += kWidth * Lanes())
    TileBf16<kRows, kWidth>(p, row, column);
}

void RowsF32(const BlockProduct& p) {
  constexpr int kWidth = kManyRegisters ? 4 : 2;
  constexpr int kRows = kManyRegisters ? 6 : 4;
  int row = 0;
  for (; row + kRows <= p.n_rows; row += kRows) ColumnsF32<kRows, kWidth>(p, row);
  const int rest = p.n_rows - row;
  if (rest & 4) ColumnsF32<4, kWidth>(p, row), row += 4;
  if (rest & 2) ColumnsF32<2, 4>(p, row), row += 2;
  if (rest & 1) ColumnsF32<1, 8>(p, row);
}

void RowsBf16(const BlockProduct& p) {
  constexpr int kWidth = kManyRegisters ? 4 : 2;
  int row = 0;
  for (; row + 4 <= p.n_rows; row += 4) ColumnsBf16<4, kWidth>(p, row);
  const int rest = p.n_rows - row;
  if (rest & 2) ColumnsBf16<2, kWidth>(p, row), row += 2;
  if (rest & 1) ColumnsBf16<1, kManyRegisters ? 4 : 8>(p, row);
}

}  // namespace
}  // namespace t6::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace t6::cpu {

HWY_EXPORT(RowsF32);
HWY_EXPORT(RowsBf16);

void RowsF32(const BlockProduct& product) { HWY_DYNAMIC_DISPATCH(RowsF32)(product); }
void RowsBf16(const BlockProduct& product) { HWY_DYNAMIC_DISPATCH(RowsBf16)(product); }

}  // namespace t6::cpu
#endif
