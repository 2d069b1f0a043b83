// Attention's vector arithmetic with Highway, compiled once for each of its targets (see foreach_target).
// T is the page's element type: float, or bf16, widened by shifts. Products here are float32.
// No include guard in the usual sense: Highway's toggle lets each target include it once.
#if defined(T6_TPA_ATTENTION_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef T6_TPA_ATTENTION_KERNELS_INL_H_
#undef T6_TPA_ATTENTION_KERNELS_INL_H_
#else
#define T6_TPA_ATTENTION_KERNELS_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "engine/backend/cpu/exp2-inl.h"
#include "engine/backend/cpu/row_ops.h"
#include "engine/backend/cpu/tpa_attention_kernels.h"
#include "engine/backend/cpu/tpa_attention_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace t6::cpu {
namespace HWY_NAMESPACE {
HWY_INLINE hn::Mask<Df> Below(Df d, int first, int end) {
  return hn::Lt(hn::Iota(d, static_cast<float>(first)), hn::Set(d, static_cast<float>(end)));
}

inline void Scale(float* x, int n, float factor) {
  const Df d;
  for (int i = 0; i < n; i += static_cast<int>(hn::Lanes(d))) {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor)), d, x + i);
  }
}

template <typename T>
void Score(const ScoreArgs& s) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  constexpr int kVectors = 4;
  for (int i = 0; i < s.n_rows; ++i) {
    for (int head = 0; head < s.n_heads; ++head) {
      float* logits = s.logits + (static_cast<size_t>(i) * s.n_heads + head) * 64;
      for (int t = 0; t < 64; t += kVectors * lanes) {
        Vf sum[kVectors];
        for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
        for (int r = 0; r < s.rank_k; ++r) {
          const T* ak = static_cast<const T*>(s.ak) + (static_cast<size_t>(r) * s.n_heads + head) * 64 + t;
          const float* p = s.products + static_cast<size_t>(r) * s.product_rows * 64 + t;
          Vf dot[kVectors];
          if (s.aq == nullptr) {
            p += (static_cast<size_t>(i) * s.n_heads + head) * 64;
            for (int v = 0; v < kVectors; ++v) dot[v] = hn::LoadU(d, p + v * lanes);
          } else {
            const float* aq = s.aq + i * s.aq_stride + static_cast<size_t>(head) * s.rank_q;
            p += static_cast<size_t>(i) * s.rank_q * 64;
            for (int v = 0; v < kVectors; ++v) dot[v] = hn::Zero(d);
            for (int q = 0; q < s.rank_q; ++q) {
              const Vf a = hn::Set(d, aq[q]);
              for (int v = 0; v < kVectors; ++v) dot[v] = hn::MulAdd(a, hn::LoadU(d, p + v * lanes), dot[v]);
              p += 64;
            }
          }
          for (int v = 0; v < kVectors; ++v) sum[v] = hn::MulAdd(LoadWide(d, ak + v * lanes), dot[v], sum[v]);
        }
        for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[v], d, logits + t + v * lanes);
      }
    }
  }
}

// Columns that the row does not see may hold anything, NaN included: they are replaced, never multiplied.
inline void HideColumns(float* row, int visible, int n_tokens) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int t = HWY_MAX(visible, 0) / lanes * lanes; t < n_tokens; t += lanes) {
    const Vf low = hn::Set(d, -HUGE_VALF);
    hn::StoreU(hn::IfThenElse(Below(d, t, visible), hn::LoadU(d, row + t), low), d, row + t);
  }
}

HWY_INLINE float RowMax(const float* row, int n_tokens) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  Vf m0 = hn::LoadU(d, row), m1 = hn::LoadU(d, row + lanes);
  for (int t = 2 * lanes; t < n_tokens; t += 2 * lanes) {
    m0 = hn::Max(m0, hn::LoadU(d, row + t));
    m1 = hn::Max(m1, hn::LoadU(d, row + t + lanes));
  }
  return hn::GetLane(hn::MaxOfLanes(d, hn::Max(m0, m1)));
}

// row = 2^(row - max), zero from visible on; returns its sum.
template <bool kAllVisible>
HWY_INLINE float RowWeights(float* row, float max, int visible, int n_tokens) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const Vf vmax = hn::Set(d, max);
  Vf s0 = hn::Zero(d), s1 = hn::Zero(d);
  for (int t = 0; t < n_tokens; t += 2 * lanes) {
    Vf p0 = Exp2(d, hn::Sub(hn::LoadU(d, row + t), vmax));
    Vf p1 = Exp2(d, hn::Sub(hn::LoadU(d, row + t + lanes), vmax));
    if constexpr (!kAllVisible) {
      p0 = hn::IfThenElseZero(Below(d, t, visible), p0);
      p1 = hn::IfThenElseZero(Below(d, t + lanes, visible), p1);
    }
    s0 = hn::Add(s0, p0), s1 = hn::Add(s1, p1);
    hn::StoreU(p0, d, row + t);
    hn::StoreU(p1, d, row + t + lanes);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1)));
}

// In passes over the rows, so that one row's reductions and exponentials need not wait for another's.
void Softmax(const SoftmaxArgs& s) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  constexpr int kPass = 32;
  HWY_ALIGN float shrink[kPass];  // what the page's maximum makes of the sums so far
  for (int begin = 0; begin < s.n; begin += kPass) {
    const int n = HWY_MIN(kPass, s.n - begin);
    float* rows = s.logits + static_cast<size_t>(begin) * 64;
    float *max = s.max + begin, *sum = s.sum + begin;
    bool any = false;
    for (int i = 0; i < n; ++i) {
      const int visible = s.visible[begin + i];
      if (visible < s.n_tokens) HideColumns(rows + i * 64, visible, s.n_tokens);
      // A row that sees nothing keeps its maximum; before its first token that is -inf, and its factor must
      // not be NaN.
      const float most = visible > 0 ? HWY_MAX(max[i], RowMax(rows + i * 64, s.n_tokens)) : max[i];
      shrink[i] = most > max[i] ? max[i] - most : 0.0f;
      any |= most > max[i];
      max[i] = most;
    }
    if (any) {
      for (int i = n; i < kPass; ++i) shrink[i] = 0.0f;
      for (int i = 0; i < n; i += lanes) hn::Store(Exp2(d, hn::Load(d, shrink + i)), d, shrink + i);
      for (int i = 0; i < n; ++i) {
        sum[i] *= shrink[i];
        Scale(s.out + static_cast<size_t>(begin + i) * s.dp, s.dp, shrink[i]);
      }
    }
    for (int i = 0; i < n; ++i) {
      const int visible = s.visible[begin + i];
      if (visible >= s.n_tokens) {
        sum[i] += RowWeights<true>(rows + i * 64, max[i], visible, s.n_tokens);
      } else if (visible > 0) {
        sum[i] += RowWeights<false>(rows + i * 64, max[i], visible, s.n_tokens);
      } else {
        std::memset(rows + i * 64, 0, sizeof(float) * s.n_tokens);
      }
    }
  }
}

template <typename T>
void Weigh(const WeighArgs& w) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int i = 0; i < w.n; ++i) {
    const float* p = w.p + static_cast<size_t>(i) * 64;
    for (int u = 0; u < w.rank_v; ++u) {
      const T* av = static_cast<const T*>(w.av) + (static_cast<size_t>(u) * w.n_heads + i % w.n_heads) * 64;
      float* out = w.weights + (static_cast<size_t>(i) * w.rank_v + u) * 64;
      for (int t = 0; t < 64; t += lanes) {
        Vf x = hn::Mul(hn::LoadU(d, p + t), LoadWide(d, av + t));
        if (t + lanes > w.visible[i]) x = hn::IfThenElseZero(Below(d, t, w.visible[i]), x);
        hn::StoreU(x, d, out + t);
      }
    }
  }
}

inline float Widen(float x) { return x; }
inline float Widen(bf16 x) { return ToFloat(x); }

template <typename T>
void Expand(const ExpandArgs& e) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int t = 0; t < e.valid; ++t) {
    for (int c = 0; c < e.dp; c += 2 * lanes) {
      Vf s0 = hn::Zero(d), s1 = hn::Zero(d);
      for (int r = 0; r < e.rank; ++r) {
        const Vf a = hn::Set(d, Widen(static_cast<const T*>(e.a)[(r * e.n_heads + e.head) * 64 + t]));
        const T* b = static_cast<const T*>(e.b) + (static_cast<size_t>(r) * 64 + t) * e.dp + c;
        s0 = hn::MulAdd(a, LoadWide(d, b), s0);
        s1 = hn::MulAdd(a, LoadWide(d, b + lanes), s1);
      }
      hn::StoreU(s0, d, e.out + t * e.dp + c);
      hn::StoreU(s1, d, e.out + t * e.dp + c + lanes);
    }
  }
  if (e.valid < 64) std::memset(e.out + e.valid * e.dp, 0, sizeof(float) * (64 - e.valid) * e.dp);
}

// e4m3 has the bits of a float32 whose exponent is 120 too small, denormals included. NaN does not survive,
// but the store writes none without a scale that is NaN.
inline void WidenFp8(const WidenArgs& w) {
  const Df d;
  const hn::RebindToUnsigned<Df> d32;
  const hn::RebindToSigned<Df> di;
  const hn::Rebind<uint8_t, Df> d8;
  const hn::Rebind<uint16_t, Df> d16;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const Vf power = hn::Set(d, 0x1p120f);
  for (int i = 0; i < w.rows * 64; i += lanes) {
    const auto x = hn::PromoteTo(d32, hn::LoadU(d8, w.in + i));
    const auto sign = hn::ShiftLeft<24>(hn::And(x, hn::Set(d32, 0x80)));
    const auto rest = hn::ShiftLeft<20>(hn::And(x, hn::Set(d32, 0x7f)));
    Vf y = hn::Mul(hn::BitCast(d, hn::Or(sign, rest)), power);
    if (w.scales != nullptr) y = hn::Mul(y, hn::LoadU(d, w.scales + i % 64));
    const auto high = hn::BitCast(di, hn::ShiftRight<16>(hn::BitCast(d32, y)));
    hn::StoreU(hn::DemoteTo(d16, high), d16, reinterpret_cast<uint16_t*>(w.out) + i);
  }
}

// --- the end ---

// Weights of the parts of up to a vector of entries, the sums they give, and their greatest maximum.
struct PartWeights {
  static constexpr int kParts = 32;  // at once
  HWY_ALIGN float of[kParts][HWY_LANES(float)];
};

// The numbers of entry e, merged into the first part.
inline void MergeEntry(const FinishArgs& f, int e, const PartWeights& w, int first, int n_parts, int lane) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  float* row = f.parts + static_cast<size_t>(e) * f.dp;
  for (int c = 0; c < f.dp; c += 2 * lanes) {
    const float* part = row + c + static_cast<size_t>(first) * f.part_stride;
    Vf s0 = hn::Zero(d), s1 = hn::Zero(d);
    if (first > 0) s0 = hn::LoadU(d, row + c), s1 = hn::LoadU(d, row + c + lanes);
    for (int s = 0; s < n_parts; ++s, part += f.part_stride) {
      const Vf x = hn::Set(d, w.of[s][lane]);
      s0 = hn::MulAdd(x, hn::LoadU(d, part), s0);
      s1 = hn::MulAdd(x, hn::LoadU(d, part + lanes), s1);
    }
    hn::StoreU(s0, d, row + c);
    hn::StoreU(s1, d, row + c + lanes);
  }
}

// Divides an entry by its sum, applies subln, writes.
inline void WriteEntry(const FinishArgs& f, int e, float total) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  float* row = f.parts + static_cast<size_t>(e) * f.dp;
  Scale(row, f.dp, f.scale / total);
  if (f.norm_weight != nullptr) {
    Vf squares = hn::Zero(d);  // columns from d on are zeros
    for (int c = 0; c < f.dp; c += lanes) {
      const Vf x = hn::LoadU(d, row + c);
      squares = hn::MulAdd(x, x, squares);
    }
    const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(f.d);
    const float factor = 1.0f / std::sqrt(mean + f.norm_eps);
    for (int c = 0; c < f.d; ++c) row[c] = row[c] * factor * f.norm_weight[c];
  }
  if (f.out_dtype == DType::kBF16) {
    PrepareRow(row, f.d, f.d, {}, static_cast<bf16*>(f.out) + e * f.out_stride);
  } else {
    std::memcpy(static_cast<float*>(f.out) + e * f.out_stride, row, sizeof(float) * f.d);
  }
}

// The statistics of a vector of entries lie side by side, and may be read beyond the last one.
void Finish(const FinishArgs& f) {
  const Df d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  PartWeights w;
  HWY_ALIGN float totals[HWY_LANES(float)];
  for (int e = 0; e < f.n; e += lanes) {
    const int n = HWY_MIN(lanes, f.n - e);
    Vf most = hn::LoadU(d, f.max + e), total = hn::LoadU(d, f.sum + e);
    if (f.n_parts > 1) {
      for (int s = 1; s < f.n_parts; ++s) most = hn::Max(most, hn::LoadU(d, f.max + s * f.stat_stride + e));
      total = hn::Zero(d);
      for (int first = 0; first < f.n_parts; first += PartWeights::kParts) {
        const int n_parts = HWY_MIN(PartWeights::kParts, f.n_parts - first);
        for (int s = 0; s < n_parts; ++s) {
          const size_t at = (first + s) * f.stat_stride + e;
          const Vf weight = Exp2(d, hn::Sub(hn::LoadU(d, f.max + at), most));
          total = hn::MulAdd(weight, hn::LoadU(d, f.sum + at), total);
          hn::Store(weight, d, w.of[s]);
        }
        for (int i = 0; i < n; ++i) MergeEntry(f, e + i, w, first, n_parts, i);
      }
    }
    hn::Store(total, d, totals);
    for (int i = 0; i < n; ++i) WriteEntry(f, e + i, totals[i]);
  }
}

template <typename T>
AttentionKernels MakeTable() {
  AttentionKernels k;
  k.name = hwy::TargetName(HWY_TARGET);
  k.page = sizeof(T) == sizeof(float) ? DType::kF32 : DType::kBF16;
  k.compute = DType::kF32;
  k.gemm = k.gemm_f32 = GemmF32;
  k.mix = Mix;
  k.rotate = Rotate;
  k.pack_keys = PackKeys<T>;
  k.pack_values = PackValues<T>;
  k.pack_float_keys = PackFloatKeys;
  k.pack_float_values = PackFloatValues;
  k.round = KeepFloats;
  k.score = Score<T>;
  k.softmax = Softmax;
  k.weigh = Weigh<T>;
  k.expand = Expand<T>;
  k.finish = Finish;
  k.widen_fp8 = WidenFp8;
  return k;
}

AttentionKernels KernelsF32() { return MakeTable<float>(); }
AttentionKernels KernelsBf16() { return MakeTable<bf16>(); }

}  // namespace HWY_NAMESPACE
}  // namespace t6::cpu
HWY_AFTER_NAMESPACE();
#endif  // per-target include guard
