// What stands between attention's two products on CPUs with AVX512-BF16: scores from the factored product,
// and online softmax that leaves its weights as operands. A row's 64 numbers stay in registers from one
// memory pass to the next. Every function here needs what its target pragma says; tpa_attention_kernels.cc
// asks the CPU first.
#pragma once

#include <hwy/base.h>

#if HWY_ARCH_X86_64
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "engine/backend/cpu/attention_intrinsics-inl.h"
#include "engine/backend/cpu/tpa_attention_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace t6::cpu::bf16_kernels {

inline __m512 LoadWide(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}

// One query row's scores from its factored product, kVectors vectors of tokens at a time: all kRankQ of their
// products stay in registers for all heads.
template <int kRankQ, int kVectors>
void ScoreRow(const ScoreArgs& s, int row, PageFetch* fetch) {
  const float* aq = s.aq + row * s.aq_stride;
  for (int t = 0; t < s.n_tokens; t += 16 * kVectors) {
    for (int r = 0; r < s.rank_k; ++r) {
      const float* in = s.products + (static_cast<size_t>(r) * s.product_rows + row * kRankQ) * 64 + t;
      __m512 p[kRankQ][kVectors];
#pragma GCC unroll 16
      for (int q = 0; q < kRankQ; ++q) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) p[q][v] = _mm512_loadu_ps(in + q * 64 + 16 * v);
      }
      const auto* ak = static_cast<const uint16_t*>(s.ak) + static_cast<size_t>(r) * s.n_heads * 64 + t;
      float* logits = s.logits + static_cast<size_t>(row) * s.n_heads * 64 + t;
      for (int head = 0; head < s.n_heads; ++head, ak += 64, logits += 64) {
        __m512 dot[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) dot[v] = _mm512_setzero_ps();
#pragma GCC unroll 16
        for (int q = 0; q < kRankQ; ++q) {
          const __m512 a = _mm512_set1_ps(aq[head * kRankQ + q]);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) dot[v] = _mm512_fmadd_ps(a, p[q][v], dot[v]);
        }
        fetch->Lines<2>();
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const __m512 sum = r == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(logits + 16 * v);
          _mm512_storeu_ps(logits + 16 * v, _mm512_fmadd_ps(LoadWide(ak + 16 * v), dot[v], sum));
        }
      }
    }
  }
}

// The ranks that fit the registers; others go to the general kernel.
inline bool CanScore(const ScoreArgs& s) { return s.aq != nullptr && s.rank_q >= 1 && s.rank_q <= 12; }

inline void Score(const ScoreArgs& s) {
  using Row = void (*)(const ScoreArgs&, int, PageFetch*);
  static constexpr Row kRows[] = {ScoreRow<1, 4>, ScoreRow<2, 4>,  ScoreRow<3, 4>,  ScoreRow<4, 4>,
                                  ScoreRow<5, 4>, ScoreRow<6, 4>,  ScoreRow<7, 2>,  ScoreRow<8, 2>,
                                  ScoreRow<9, 2>, ScoreRow<10, 2>, ScoreRow<11, 2>, ScoreRow<12, 2>};
  static constexpr Row kHalf[] = {ScoreRow<1, 2>, ScoreRow<2, 2>, ScoreRow<3, 2>,
                                  ScoreRow<4, 2>, ScoreRow<5, 2>, ScoreRow<6, 2>};
  PageFetch nothing, *fetch = s.fetch != nullptr ? s.fetch : &nothing;
  const Row row_scores = s.n_tokens <= 32 && s.rank_q <= 6 ? kHalf[s.rank_q - 1] : kRows[s.rank_q - 1];
  for (int row = 0; row < s.n_rows; ++row) row_scores(s, row, fetch);
}

// 2^x as in tpa_attention_kernels-inl.h.
inline __m512 Exp2(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512 shifted = _mm512_add_ps(x, magic);
  const __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
  __m512 y = _mm512_set1_ps(1.559467747e-4f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.340664390e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.617692975e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.550310551e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.402265278e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.931472150e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

// The same to a relative error of 8e-5, for weights that bfloat16 rounds to 4e-3 of themselves.
inline __m512 CoarseExp2(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512 shifted = _mm512_add_ps(x, magic);
  const __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
  __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(5.517166907e-2f), f, _mm512_set1_ps(2.426111222e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.932609855e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.999280735e-1f));
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

// Where one row of scores stands in its online softmax.
struct SoftmaxState {
  float* max;
  float* sum;
  float* out;  // [dp]
  int dp;
};

// A row's new maximum: sums and output so far shrink to it. Before a row's first page there are none, and its
// output need not be in the cache, or be numbers.
inline void Shrink(const SoftmaxState& s, float most) {
  if (*s.max == -__builtin_huge_valf()) {
    *s.max = most;
    return;
  }
  const __m512 factor = Exp2(_mm512_set1_ps(*s.max - most));
  *s.sum *= _mm512_cvtss_f32(factor);
  for (int c = 0; c < s.dp; c += 16)
    _mm512_storeu_ps(s.out + c, _mm512_mul_ps(_mm512_loadu_ps(s.out + c), factor));
  *s.max = most;
}

inline void StoreRounded(const __m512 (&x)[4], uint16_t* out) {
  _mm512_storeu_si512(out, RoundTwo(x[0], x[1]));
  _mm512_storeu_si512(out + 32, RoundTwo(x[2], x[3]));
}

// How far a score may lie above the maximum that its row's sums refer to: weights up to 2^8 lose nothing in
// bfloat16 or float32, and a row rarely has to shrink, or to mispredict that it must, after its first page.
constexpr float kSlack = 8.0f;

// The maximum that a row's sums refer to, after it has risen if some score exceeds what they allow: so the
// exponentials do not wait for a maximum over the row.
inline __m512 MaximumOf(const __m512 (&x)[4], const SoftmaxState& s) {
  const __m512 most = _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3]));
  if (_mm512_cmp_ps_mask(most, _mm512_set1_ps(*s.max + kSlack), _CMP_GT_OQ) != 0)
    Shrink(s, _mm512_reduce_max_ps(most));
  return _mm512_set1_ps(*s.max);
}

// The sums of four vectors, each in the same order whichever of the four it is.
inline __m128 SumsOf(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)),
                high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 four = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

inline __m512 SumOfFour(const __m512 (&x)[4]) {
  return _mm512_add_ps(_mm512_add_ps(x[0], x[2]), _mm512_add_ps(x[1], x[3]));
}

// A page's scores of one row become weights. kAll: the row sees every token; else those of the mask.
template <bool kAll>
inline void Exponentials(__m512 (&x)[4], uint64_t seen, const SoftmaxState& s) {
  const auto mask = [&](int v) { return static_cast<__mmask16>(seen >> (16 * v)); };
  if (!kAll) {
    const __m512 low = _mm512_set1_ps(-__builtin_huge_valf());
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) x[v] = _mm512_mask_mov_ps(low, mask(v), x[v]);
  }
  const __m512 max = MaximumOf(x, s);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    x[v] = CoarseExp2(_mm512_sub_ps(x[v], max));
    if (!kAll) x[v] = _mm512_maskz_mov_ps(mask(v), x[v]);
  }
  const __m512 zero = _mm512_setzero_ps();
  *s.sum += _mm_cvtss_f32(SumsOf(SumOfFour(x), zero, zero, zero));
}

template <bool kAll>
inline void SoftmaxRow(const SoftmaxArgs& s, const WeighArgs& w, int i, uint64_t seen, uint16_t* out) {
  const auto mask = [&](int v) { return static_cast<__mmask16>(seen >> (16 * v)); };
  const float* logits = s.logits + static_cast<size_t>(i) * 64;
  __m512 x[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) x[v] = _mm512_loadu_ps(logits + 16 * v);
  Exponentials<kAll>(x, seen, {s.max + i, s.sum + i, s.out + static_cast<size_t>(i) * s.dp, s.dp});
  const auto* av = static_cast<const uint16_t*>(w.av) + static_cast<size_t>(i % w.n_heads) * 64;
  for (int u = 0; u < w.rank_v; ++u, av += static_cast<size_t>(w.n_heads) * 64, out += 64) {
    __m512 y[4];
    // What is not seen may be NaN in the page.
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512 a = LoadWide(av + 16 * v);
      y[v] = kAll ? _mm512_mul_ps(x[v], a) : _mm512_maskz_mul_ps(mask(v), x[v], a);
    }
    StoreRounded(y, out);
  }
}

// Softmax and Weigh of one page in one pass, rounded: weights[i][u * 64 + t] are operands.
inline void SoftmaxWeights(const SoftmaxArgs& s, const WeighArgs& w, void* weights) {
  const int n_out = w.rank_v * 64;
  auto* out = static_cast<uint16_t*>(weights);
  for (int i = 0; i < s.n; ++i, out += n_out) {
    const int visible = s.visible[i];
    if (visible >= 64) {
      SoftmaxRow<true>(s, w, i, ~uint64_t{0}, out);
    } else if (visible > 0) {
      SoftmaxRow<false>(s, w, i, (uint64_t{1} << visible) - 1, out);
    } else {
      std::fill_n(out, n_out, uint16_t{0});
    }
  }
}

}  // namespace t6::cpu::bf16_kernels
#pragma GCC pop_options
#endif  // HWY_ARCH_X86_64
