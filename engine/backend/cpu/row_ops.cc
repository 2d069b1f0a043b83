#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/row_ops.cc"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>

#include <cmath>
#include <cstring>

#include "engine/backend/cpu/exp2-inl.h"
#include "engine/backend/cpu/row_ops.h"

HWY_BEFORE_NAMESPACE();
namespace t6::cpu::HWY_NAMESPACE {
namespace {  // each file has its own

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

int Lanes() { return static_cast<int>(hn::Lanes(D())); }

float NormScale(const float* HWY_RESTRICT in, int k, float eps) {
  const D d;
  const int n = Lanes();
  V sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  int i = 0;
  for (; i + 4 * n <= k; i += 4 * n) {
    for (int j = 0; j < 4; ++j) {
      const V x = hn::LoadU(d, in + i + j * n);
      sum[j] = hn::MulAdd(x, x, sum[j]);
    }
  }
  for (; i + n <= k; i += n) {
    const V x = hn::LoadU(d, in + i);
    sum[0] = hn::MulAdd(x, x, sum[0]);
  }
  float total = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]))));
  for (; i < k; ++i) total += in[i] * in[i];
  return 1.0f / std::sqrt(total / static_cast<float>(k) + eps);
}

// Nearest even in the high half of each lane; a NaN must not be rounded into an infinity.
template <class DU, class VF>
auto RoundedBits(DU du, VF x) {
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
  return hn::ShiftRight<16>(hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded));
}

void StoreRow(D d, V x, float* out) { hn::StoreU(x, d, out); }
void StoreRow(D d, V x, bf16* out) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(hn::RebindToSigned<D>(), RoundedBits(du, x))), d16,
             reinterpret_cast<uint16_t*>(out));
}
void StoreOne(float x, float* out) { *out = x; }
void StoreOne(float x, bf16* out) { *out = ToBf16(x); }

template <typename T>
void Prepare(const float* HWY_RESTRICT in, int k, int k_padded, const RmsNorm& norm, T* HWY_RESTRICT out) {
  const D d;
  const int n = Lanes();
  const float scale = norm.enabled ? NormScale(in, k, norm.eps) : 1.0f;
  const V scales = hn::Set(d, scale);
  const float* weight = norm.enabled ? norm.weight : nullptr;
  int i = 0;
  for (; i + n <= k; i += n) {
    V x = hn::Mul(hn::LoadU(d, in + i), scales);
    if (weight != nullptr) x = hn::Mul(x, hn::LoadU(d, weight + i));
    StoreRow(d, x, out + i);
  }
  for (; i < k; ++i) StoreOne(weight != nullptr ? in[i] * scale * weight[i] : in[i] * scale, out + i);
  std::memset(out + k, 0, static_cast<size_t>(k_padded - k) * sizeof(T));
}

void PrepareF32(const float* in, int k, int k_padded, const RmsNorm& norm, float* out) {
  Prepare(in, k, k_padded, norm, out);
}
void PrepareBf16(const float* in, int k, int k_padded, const RmsNorm& norm, bf16* out) {
  Prepare(in, k, k_padded, norm, out);
}

// Exp2 knows no infinity, hence the bound.
V Silu(D d, V x) {
  const V e = Exp2(d, hn::Min(hn::Mul(x, hn::Set(d, -1.442695041f)), hn::Set(d, 127.0f)));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), e));
}

// Calls whole(i) for vectors and then once part(i, n_left) for what is left.
template <class Whole, class Part>
void ForColumns(int n_columns, const Whole& whole, const Part& part) {
  int i = 0;
  for (; i + Lanes() <= n_columns; i += Lanes()) whole(i);
  if (i < n_columns) part(i, n_columns - i);
}

template <typename T>
void StoreTile(const TileEpilogue& t) {
  const D d;
  for (int r = 0; r < t.n_rows; ++r) {
    const float* HWY_RESTRICT c = t.c + r * t.c_stride;
    const float* HWY_RESTRICT up = t.c_up + r * t.c_stride;
    T* HWY_RESTRICT out = static_cast<T*>(t.out) + r * t.out_stride;
    const auto at = [&](int i) {
      const V x = hn::LoadU(d, c + i);
      return t.kind == Epilogue::kSwiGlu ? hn::Mul(Silu(d, x), hn::LoadU(d, up + i)) : x;
    };
    // A tile's scratch always holds whole vectors, so the last one is computed whole and cut when stored.
    ForColumns(
        t.n_columns, [&](int i) { StoreRow(d, at(i), out + i); },
        [&](int i, int n_left) {
          HWY_ALIGN T last[HWY_LANES(float)];
          StoreRow(d, at(i), last);
          std::memcpy(out + i, last, static_cast<size_t>(n_left) * sizeof(T));
        });
  }
}

void FinishTile(const TileEpilogue& t) {
  if (t.kind != Epilogue::kAdd) return t.out_dtype == DType::kBF16 ? StoreTile<bf16>(t) : StoreTile<float>(t);
  for (int r = 0; r < t.n_rows; ++r) {
    const float* HWY_RESTRICT c = t.c + r * t.c_stride;
    float* HWY_RESTRICT out = static_cast<float*>(t.out) + r * t.out_stride;
    for (int i = 0; i < t.n_columns; ++i) out[i] += c[i];
  }
}

void Widen(const bf16* HWY_RESTRICT in, int n, float* HWY_RESTRICT out) {
  const D d;
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> d16;
  const auto* bits = reinterpret_cast<const uint16_t*>(in);
  int i = 0;
  for (; i + Lanes() <= n; i += Lanes()) {
    hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, bits + i)))), d, out + i);
  }
  for (; i < n; ++i) out[i] = ToFloat(in[i]);
}

}  // namespace
}  // namespace t6::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace t6::cpu {

HWY_EXPORT(PrepareF32);
HWY_EXPORT(PrepareBf16);
HWY_EXPORT(FinishTile);
HWY_EXPORT(Widen);

void PrepareRow(const float* in, int k, int k_padded, const RmsNorm& norm, float* out) {
  HWY_DYNAMIC_DISPATCH(PrepareF32)(in, k, k_padded, norm, out);
}
void PrepareRow(const float* in, int k, int k_padded, const RmsNorm& norm, bf16* out) {
  HWY_DYNAMIC_DISPATCH(PrepareBf16)(in, k, k_padded, norm, out);
}
void FinishTile(const TileEpilogue& tile) { HWY_DYNAMIC_DISPATCH(FinishTile)(tile); }
void WidenRow(const bf16* in, int n, float* out) { HWY_DYNAMIC_DISPATCH(Widen)(in, n, out); }

}  // namespace t6::cpu
#endif
