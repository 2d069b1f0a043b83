// Many rows on one page, head by head, on CPUs with AVX512-BF16: keys and values of a head expanded from
// their factors, and scores that become weights without leaving the registers. Every function here needs what
// its target pragma says; tpa_attention_kernels.cc asks the CPU first.
//
// Expanding is a product over ranks: a 32-bit word holds two ranks of B, another two of A. Words are laid out
// so that the two sums that make a pair of the expanded operand stand side by side, and rounding packs them.
#pragma once

#include <hwy/base.h>

#if HWY_ARCH_X86_64
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "engine/backend/cpu/attention_softmax_x86-inl.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace t6::cpu::bf16_kernels {

inline __m512i Widen(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Words of 16 columns of two ranks; `second` may be null.
inline __m512i RankWords(const uint16_t* first, const uint16_t* second) {
  const __m512i low = Widen(first);
  return second == nullptr ? low : _mm512_or_si512(low, _mm512_slli_epi32(Widen(second), 16));
}

// Transposes 8 x 8 words of 64 bits.
inline void Transpose64(__m512i (&x)[8]) {
  __m512i pairs[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    pairs[i] = _mm512_unpacklo_epi64(x[2 * i], x[2 * i + 1]);
    pairs[4 + i] = _mm512_unpackhi_epi64(x[2 * i], x[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i* p = pairs + 4 * odd;
    const __m512i even0 = _mm512_shuffle_i64x2(p[0], p[1], 0x88),
                  odd0 = _mm512_shuffle_i64x2(p[0], p[1], 0xdd);
    const __m512i even1 = _mm512_shuffle_i64x2(p[2], p[3], 0x88),
                  odd1 = _mm512_shuffle_i64x2(p[2], p[3], 0xdd);
    x[odd] = _mm512_shuffle_i64x2(even0, even1, 0x88);
    x[2 + odd] = _mm512_shuffle_i64x2(odd0, odd1, 0x88);
    x[4 + odd] = _mm512_shuffle_i64x2(even0, even1, 0xdd);
    x[6 + odd] = _mm512_shuffle_i64x2(odd0, odd1, 0xdd);
  }
}

// B_K [rank][64][dp] -> words [(rank + 1) / 2][dp / 2][64][2].
inline void PairKeys(const void* rows, int rank, int dp, void* paired) {
  const auto* in = static_cast<const uint16_t*>(rows);
  auto* out = static_cast<uint32_t*>(paired);
  const size_t n = static_cast<size_t>(64) * dp;
  for (int r = 0; r < rank; r += 2, in += 2 * n, out += n) {
    const uint16_t* second = r + 1 < rank ? in + n : nullptr;
    for (int t = 0; t < 64; t += 8) {
      for (int c = 0; c < dp; c += 16) {
        __m512i x[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const size_t at = static_cast<size_t>(t + i) * dp + c;
          x[i] = RankWords(in + at, second == nullptr ? nullptr : second + at);
        }
        Transpose64(x);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) _mm512_storeu_si512(out + (c / 2 + i) * 128 + 2 * t, x[i]);
      }
    }
  }
}

// B_V [rank][64][dp] -> words [(rank + 1) / 2][32][dp][2].
inline void PairValues(const void* rows, int rank, int dp, void* paired) {
  const auto* in = static_cast<const uint16_t*>(rows);
  auto* out = static_cast<uint32_t*>(paired);
  const size_t n = static_cast<size_t>(64) * dp;
  alignas(64) uint32_t index[32];
  for (uint32_t i = 0; i < 16; ++i) index[2 * i] = i, index[2 * i + 1] = 16 + i;
  const __m512i low = _mm512_load_si512(index), high = _mm512_load_si512(index + 16);
  for (int r = 0; r < rank; r += 2, in += 2 * n) {
    const uint16_t* second = r + 1 < rank ? in + n : nullptr;
    for (int t = 0; t < 64; t += 2) {
      for (int c = 0; c < dp; c += 16, out += 32) {
        const size_t at = static_cast<size_t>(t) * dp + c;
        const __m512i x = RankWords(in + at, second == nullptr ? nullptr : second + at);
        const __m512i y = RankWords(in + at + dp, second == nullptr ? nullptr : second + at + dp);
        _mm512_storeu_si512(out, _mm512_permutex2var_epi32(x, low, y));
        _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi32(x, high, y));
      }
    }
  }
}

// A of one head as words, a[rank / 2][64], zeros from `valid` on.
inline void PairHeadRanks(const ExpandArgs& e, int head, uint32_t (*a)[64]) {
  const auto* in = static_cast<const uint16_t*>(e.a) + static_cast<size_t>(head) * 64;
  const size_t rank_stride = static_cast<size_t>(e.n_heads) * 64;
  const uint64_t seen = e.valid >= 64 ? ~uint64_t{0} : (uint64_t{1} << e.valid) - 1;
  for (int r = 0; r < e.rank; r += 2, in += 2 * rank_stride) {
    for (int t = 0; t < 64; t += 16) {
      const __m512i words = RankWords(in + t, r + 1 < e.rank ? in + rank_stride + t : nullptr);
      _mm512_store_si512(a[r / 2] + t, _mm512_maskz_mov_epi32(static_cast<__mmask16>(seen >> t), words));
    }
  }
}

inline constexpr int kMostRankPairs = 32;

// K of kHeads heads from e.head on, rounded and packed as right sides: out[head][dp / 2][64][2], zeros from
// `valid` on. `paired` is what PairKeys made, finite everywhere. Several heads at once, because what costs is
// to read it.
template <int kPairs, int kHeads>
void HeadKeysOf(const ExpandArgs& e, const void* paired, void* out) {
  alignas(64) uint32_t a[kHeads][kPairs > 0 ? kPairs : kMostRankPairs][64];
  const int n_pairs = kPairs > 0 ? kPairs : (e.rank + 1) / 2;
  for (int j = 0; j < kHeads; ++j) PairHeadRanks(e, e.head + j, a[j]);
  const size_t pair_stride = static_cast<size_t>(64) * e.dp, head_stride = static_cast<size_t>(32) * e.dp;
  // Each token's word stands for two numbers of the head's dimension.
  alignas(64) uint32_t index[32];
  for (uint32_t i = 0; i < 32; ++i) index[i] = i / 2;
  const __m512i low = _mm512_load_si512(index), high = _mm512_load_si512(index + 16);
  __m512i tokens[kHeads][8];
  const auto* b = static_cast<const uint32_t*>(paired);
  auto* to = static_cast<uint32_t*>(out);
#pragma GCC unroll 2
  for (int j = 0; j < kHeads; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      tokens[j][2 * v] = _mm512_permutexvar_epi32(low, _mm512_load_si512(a[j][0] + 16 * v));
      tokens[j][2 * v + 1] = _mm512_permutexvar_epi32(high, _mm512_load_si512(a[j][0] + 16 * v));
    }
  }
  for (int c = 0; c < e.dp; c += 2, b += 128, to += 64) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const auto x = (__m512bh)_mm512_loadu_si512(b + 32 * v),
                 y = (__m512bh)_mm512_loadu_si512(b + 32 * v + 16);
#pragma GCC unroll 2
      for (int j = 0; j < kHeads; ++j) {
        __m512 sum0 = _mm512_dpbf16_ps(_mm512_setzero_ps(), x, (__m512bh)tokens[j][2 * v]);
        __m512 sum1 = _mm512_dpbf16_ps(_mm512_setzero_ps(), y, (__m512bh)tokens[j][2 * v + 1]);
        for (int p = 1; p < n_pairs; ++p) {
          const __m512i more = _mm512_load_si512(a[j][p] + 16 * v);
          const uint32_t* bp = b + p * pair_stride + 32 * v;
          sum0 = _mm512_dpbf16_ps(sum0, (__m512bh)_mm512_loadu_si512(bp),
                                  (__m512bh)_mm512_permutexvar_epi32(low, more));
          sum1 = _mm512_dpbf16_ps(sum1, (__m512bh)_mm512_loadu_si512(bp + 16),
                                  (__m512bh)_mm512_permutexvar_epi32(high, more));
        }
        _mm512_storeu_si512(to + j * head_stride + 16 * v, RoundTwo(sum0, sum1));
      }
    }
  }
}

// V likewise: out[head][32][dp][2], from what PairValues made.
template <int kPairs, int kHeads>
void HeadValuesOf(const ExpandArgs& e, const void* paired, void* out) {
  alignas(64) uint32_t a[kHeads][kPairs > 0 ? kPairs : kMostRankPairs][64];
  const int n_pairs = kPairs > 0 ? kPairs : (e.rank + 1) / 2;
  for (int j = 0; j < kHeads; ++j) PairHeadRanks(e, e.head + j, a[j]);
  const size_t pair_stride = static_cast<size_t>(64) * e.dp, head_stride = static_cast<size_t>(32) * e.dp;
  const auto* b = static_cast<const uint32_t*>(paired);
  auto* to = static_cast<uint32_t*>(out);
  for (int t = 0; t < 64; t += 2) {
#pragma GCC unroll 4
    for (int c = 0; c < e.dp; c += 16, b += 32, to += 16) {
      __m512 sum[kHeads][2];
#pragma GCC unroll 4
      for (int j = 0; j < kHeads; ++j) sum[j][0] = sum[j][1] = _mm512_setzero_ps();
      for (int p = 0; p < n_pairs; ++p) {
        const auto x = (__m512bh)_mm512_loadu_si512(b + p * pair_stride);
        const auto y = (__m512bh)_mm512_loadu_si512(b + p * pair_stride + 16);
#pragma GCC unroll 4
        for (int j = 0; j < kHeads; ++j) {
          long long two;
          std::memcpy(&two, a[j][p] + t, sizeof(two));
          const auto tokens = (__m512bh)_mm512_set1_epi64(two);
          sum[j][0] = _mm512_dpbf16_ps(sum[j][0], x, tokens);
          sum[j][1] = _mm512_dpbf16_ps(sum[j][1], y, tokens);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < kHeads; ++j)
        _mm512_storeu_si512(to + j * head_stride, RoundTwo(sum[j][0], sum[j][1]));
    }
  }
}

inline void HeadKeys(const ExpandArgs& e, int n_heads, const void* paired, void* out) {
  if (n_heads == 2) return e.rank <= 2 ? HeadKeysOf<1, 2>(e, paired, out) : HeadKeysOf<0, 2>(e, paired, out);
  e.rank <= 2 ? HeadKeysOf<1, 1>(e, paired, out) : HeadKeysOf<0, 1>(e, paired, out);
}

inline void HeadValues(const ExpandArgs& e, int n_heads, const void* paired, void* out) {
  if (n_heads == 2)
    return e.rank <= 2 ? HeadValuesOf<1, 2>(e, paired, out) : HeadValuesOf<0, 2>(e, paired, out);
  e.rank <= 2 ? HeadValuesOf<1, 1>(e, paired, out) : HeadValuesOf<0, 1>(e, paired, out);
}

// Exponentials of rows that all see the whole page, whose sums are taken together.
template <int kRows, typename State>
inline void WholeRows(__m512 (&x)[kRows][4], int row, const State& state, uint16_t* to) {
  __m512 sums[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) sums[r] = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const __m512 max = MaximumOf(x[r], state(row + r));
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) x[r][v] = CoarseExp2(_mm512_sub_ps(x[r][v], max));
    sums[r] = SumOfFour(x[r]);
    StoreRounded(x[r], to + r * 64);
  }
  alignas(16) float totals[4];
  _mm_store_ps(totals, SumsOf(sums[0], sums[1], sums[2], sums[3]));
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) *state(row + r).sum += totals[r];
}

// kRows rows' scores of a page's first 16 kVectors tokens, all in registers: 4 kRows sums, 4 of the keys and
// one of the queries. Asks for kLines lines of `fetch` a step.
template <int kRows, int kVectors, int kLines>
void HeadWeightsOf(const HeadWeightsArgs& g, int row, PageFetch* fetch) {
  const auto* q = static_cast<const uint16_t*>(g.queries) + row * g.query_stride;
  const auto* b = static_cast<const uint32_t*>(g.keys);
  __m512 x[kRows][4];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) x[r][v] = _mm512_setzero_ps();
  }
  for (int k = 0; k < g.dp; k += 2, b += 64) {
    __m512bh keys[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) keys[v] = (__m512bh)_mm512_loadu_si512(b + 16 * v);
    fetch->Lines<kLines>();
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int pair;
      std::memcpy(&pair, q + r * g.query_stride + k, sizeof(pair));
      const auto query = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) x[r][v] = _mm512_dpbf16_ps(x[r][v], query, keys[v]);
    }
  }
  const auto state = [&](int i) {
    return SoftmaxState{g.max + i * g.stat_stride, g.sum + i * g.stat_stride, g.out + i * g.out_stride, g.dp};
  };
  auto* to = static_cast<uint16_t*>(g.weights) + static_cast<size_t>(row) * 64;
  bool whole = true;
  for (int r = 0; r < kRows; ++r) whole &= g.visible[row + r] >= 64;
  if (whole) return WholeRows(x, row, state, to);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r, to += 64) {
    const int visible = g.visible[row + r];
    if (visible >= 64) {
      Exponentials<true>(x[r], ~uint64_t{0}, state(row + r));
      StoreRounded(x[r], to);
    } else if (visible > 0) {
      Exponentials<false>(x[r], (uint64_t{1} << visible) - 1, state(row + r));
      StoreRounded(x[r], to);
    } else {
      std::fill_n(to, 64, uint16_t{0});
    }
  }
}

template <int kVectors, int kLines>
void HeadWeightsInGroups(const HeadWeightsArgs& g, PageFetch* fetch) {
  using Rows = void (*)(const HeadWeightsArgs&, int, PageFetch*);
  static constexpr Rows kRows[] = {HeadWeightsOf<1, kVectors, kLines>, HeadWeightsOf<2, kVectors, kLines>,
                                   HeadWeightsOf<3, kVectors, kLines>, HeadWeightsOf<4, kVectors, kLines>};
  for (int row = 0, groups = (g.n + 3) / 4; groups > 0; --groups) {
    const int n = (g.n - row) / groups;  // as even as can be
    kRows[n - 1](g, row, fetch);
    row += n;
  }
}

inline void HeadWeights(const HeadWeightsArgs& g) {
  PageFetch fetch = g.fetch != nullptr ? *g.fetch : PageFetch();
  if (g.n_tokens <= 32) {
    HeadWeightsInGroups<2, 0>(g, &fetch);
  } else if (g.fetch == nullptr) {
    HeadWeightsInGroups<4, 0>(g, &fetch);
  } else {
    HeadWeightsInGroups<4, 1>(g, &fetch);
  }
  if (g.fetch != nullptr) *g.fetch = fetch;
}

}  // namespace t6::cpu::bf16_kernels
#pragma GCC pop_options
#endif  // HWY_ARCH_X86_64
