// Attention's float32 products, rotation and packing with Highway. T is the page's element type: float, or
// bf16, widened by shifts. Included once for each of Highway's targets (the toggle below), as
// tpa_attention_kernels-inl.h is.
#if defined(T6_TPA_ATTENTION_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef T6_TPA_ATTENTION_PRODUCTS_INL_H_
#undef T6_TPA_ATTENTION_PRODUCTS_INL_H_
#else
#define T6_TPA_ATTENTION_PRODUCTS_INL_H_
#endif

#include <hwy/highway.h>

#include <utility>

#include "engine/backend/cpu/tpa_attention_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace t6::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Df = hn::CappedTag<float, 16>;  // 16 columns at most, so that 32 are always whole pairs of vectors
using Vf = hn::Vec<Df>;

HWY_INLINE Vf LoadWide(Df d, const float* p) { return hn::LoadU(d, p); }
HWY_INLINE Vf LoadWide(Df d, const bf16* p) {
  const hn::Rebind<uint16_t, Df> d16;
  const hn::RebindToUnsigned<Df> d32;
  const auto wide = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(d, hn::ShiftLeft<16>(wide));
}

template <int kRows>
void GemmRows(const GemmArgs& g, int row) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const float* a = static_cast<const float*>(g.a) + static_cast<size_t>(row) * g.lda;
  for (int n = 0; n < g.n; n += 2 * lanes) {
    const float* b = static_cast<const float*>(g.b) + n;
    float* c = g.c + static_cast<size_t>(row) * g.ldc + n;
    Vf s0[kRows], s1[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      s0[r] = g.accumulate ? hn::LoadU(d, c + r * g.ldc) : hn::Zero(d);
      s1[r] = g.accumulate ? hn::LoadU(d, c + r * g.ldc + lanes) : hn::Zero(d);
    }
    for (int k = 0; k < g.k; ++k) {
      const Vf b0 = hn::LoadU(d, b), b1 = hn::LoadU(d, b + lanes);
      b += g.ldb;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vf x = hn::Set(d, a[r * g.lda + k]);
        s0[r] = hn::MulAdd(x, b0, s0[r]);
        s1[r] = hn::MulAdd(x, b1, s1[r]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      hn::StoreU(s0[r], d, c + r * g.ldc);
      hn::StoreU(s1[r], d, c + r * g.ldc + lanes);
    }
  }
}

// As many rows as registers allow: two sums a row, two vectors of b, one broadcast.
constexpr int kMaxRows = HWY_MAX_BYTES >= 64 ? 14 : 6;

template <int... kRows>
void GemmBlock(const GemmArgs& g, int row, int n_rows, std::integer_sequence<int, kRows...>) {
  using Block = void (*)(const GemmArgs&, int);
  static constexpr Block kBlocks[] = {GemmRows<kRows + 1>...};
  kBlocks[n_rows - 1](g, row);
}

void GemmF32(const GemmArgs& g) {
  const int n_blocks = (g.m + kMaxRows - 1) / kMaxRows;
  for (int i = 0; i < n_blocks; ++i) {
    const int begin = g.m * i / n_blocks, end = g.m * (i + 1) / n_blocks;
    GemmBlock(g, begin, end - begin, std::make_integer_sequence<int, kMaxRows>());
  }
}

void Mix(const MixArgs& m) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int i = 0; i < m.n; ++i) {
    const float* a = m.a + i * m.a_stride;
    for (int c = 0; c < m.dp; c += 2 * lanes) {
      const float* b = m.vectors + i * m.vector_stride + c;
      Vf s0 = hn::Zero(d), s1 = hn::Zero(d);
      for (int q = 0; q < m.rank; ++q, b += m.dp) {
        const Vf x = hn::Set(d, a[q]);
        s0 = hn::MulAdd(x, hn::LoadU(d, b), s0);
        s1 = hn::MulAdd(x, hn::LoadU(d, b + lanes), s1);
      }
      hn::StoreU(s0, d, m.out + static_cast<size_t>(i) * m.dp + c);
      hn::StoreU(s1, d, m.out + static_cast<size_t>(i) * m.dp + c + lanes);
    }
  }
}

void Rotate(const RotateArgs& r) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const Vf scale = hn::Set(d, r.scale);
  for (int v = 0; v < r.n; ++v) {
    const float* in = r.in + static_cast<size_t>(v) * r.d;
    float* out = r.out + static_cast<size_t>(v) * r.dp;
    int i = 0;
    for (; i + lanes <= r.half; i += lanes) {
      const Vf x1 = hn::LoadU(d, in + i), x2 = hn::LoadU(d, in + r.half + i);
      const Vf cos = hn::LoadU(d, r.cos + i), sin = hn::LoadU(d, r.sin + i);
      hn::StoreU(hn::Mul(hn::Add(hn::Mul(x1, cos), hn::Mul(x2, sin)), scale), d, out + i);
      hn::StoreU(hn::Mul(hn::Sub(hn::Mul(x2, cos), hn::Mul(x1, sin)), scale), d, out + r.half + i);
    }
    for (; i < r.half; ++i) {
      out[i] = (in[i] * r.cos[i] + in[r.half + i] * r.sin[i]) * r.scale;
      out[r.half + i] = (in[r.half + i] * r.cos[i] - in[i] * r.sin[i]) * r.scale;
    }
    for (i = 2 * r.half; i < r.d; ++i) out[i] = in[i] * r.scale;
    for (i = r.d; i < r.dp; ++i) out[i] = 0.0f;
  }
}

// --- packing ---

// Transposes [64][stride] by blocks of 4 x 4: n_columns of it -> [n_columns][64].
inline void Transpose(const float* in, int stride, int n_columns, float* out) {
#if HWY_TARGET == HWY_SCALAR
  for (int c = 0; c < n_columns; ++c) {
    for (int t = 0; t < 64; ++t) out[c * 64 + t] = in[static_cast<size_t>(t) * stride + c];
  }
#else
  const hn::CappedTag<float, 4> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  const auto low = [&](auto x, auto y) { return hn::InterleaveLower(d, x, y); };
  const auto high = [&](auto x, auto y) { return hn::InterleaveUpper(d, x, y); };
  const auto low64 = [&](auto x, auto y) {
    return hn::BitCast(d, hn::InterleaveLower(d64, hn::BitCast(d64, x), hn::BitCast(d64, y)));
  };
  const auto high64 = [&](auto x, auto y) {
    return hn::BitCast(d, hn::InterleaveUpper(d64, hn::BitCast(d64, x), hn::BitCast(d64, y)));
  };
  for (int c = 0; c < n_columns; c += 4) {
    for (int t = 0; t < 64; t += 4) {
      const float* p = in + static_cast<size_t>(t) * stride + c;
      const auto r0 = hn::LoadU(d, p), r1 = hn::LoadU(d, p + stride);
      const auto r2 = hn::LoadU(d, p + 2 * stride), r3 = hn::LoadU(d, p + 3 * stride);
      float* q = out + c * 64 + t;
      hn::StoreU(low64(low(r0, r1), low(r2, r3)), d, q);
      hn::StoreU(high64(low(r0, r1), low(r2, r3)), d, q + 64);
      hn::StoreU(low64(high(r0, r1), high(r2, r3)), d, q + 128);
      hn::StoreU(high64(high(r0, r1), high(r2, r3)), d, q + 192);
    }
  }
#endif
}

const void* PackFloatKeys(const float* rows, int dp, void* buffer) {
  Transpose(rows, dp, dp, static_cast<float*>(buffer));
  return buffer;
}

const void* PackFloatValues(const float* rows, int /*dp*/, void* /*buffer*/) { return rows; }

const void* KeepFloats(const float* in, size_t /*n*/, void* /*buffer*/) { return in; }

template <typename T>
const void* PackKeys(const void* rows, int dp, int /*n_tokens*/, void* buffer) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  if constexpr (sizeof(T) == sizeof(float)) return PackFloatKeys(static_cast<const float*>(rows), dp, buffer);
  for (int c = 0; c < dp; c += 32) {
    alignas(64) float wide[64 * 32];
    for (int t = 0; t < 64; ++t) {
      for (int i = 0; i < 32; i += lanes) {
        hn::StoreU(LoadWide(d, static_cast<const T*>(rows) + t * dp + c + i), d, wide + t * 32 + i);
      }
    }
    Transpose(wide, 32, 32, static_cast<float*>(buffer) + c * 64);
  }
  return buffer;
}

template <typename T>
const void* PackValues(const void* rows, int dp, void* buffer) {
  if constexpr (sizeof(T) == sizeof(float)) return rows;
  const Df d;
  auto* out = static_cast<float*>(buffer);
  for (int i = 0; i < 64 * dp; i += static_cast<int>(hn::Lanes(d))) {
    hn::StoreU(LoadWide(d, static_cast<const T*>(rows) + i), d, out + i);
  }
  return buffer;
}

}  // namespace HWY_NAMESPACE
}  // namespace t6::cpu
HWY_AFTER_NAMESPACE();
#endif  // per-target include guard
