// The instructions that Highway 1.0 lacks, for attention's products: AVX512-BF16, AMX tiles, and the packing
// of both. Every function here needs what its target pragma says; tpa_attention_kernels.cc asks the CPU
// first.
#pragma once

#include <hwy/base.h>

#if HWY_ARCH_X86_64
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "engine/backend/cpu/tpa_attention_kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace t6::cpu::bf16_kernels {

// Transposes 32-bit words: src [n_rows][src_words], n_words of each -> dst [n_words][64].
// Four 128-bit loads fill a register from four rows, so that only two rounds of in-lane shuffles are left.
inline void TransposeWords(const uint32_t* src, int n_rows, size_t src_words, int n_words, uint32_t* dst) {
  for (int t = 0; t < n_rows; t += 16) {
    for (int w = 0; w < n_words; w += 4) {
      const uint32_t* p = src + t * src_words + w;
      __m512i x[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {  // lane group g of x[i]: words w..w+3 of token t + 4 g + i
        const uint32_t* q = p + i * src_words;
        x[i] = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
        x[i] = _mm512_mask_broadcast_i32x4(
            x[i], 0x00f0, _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 4 * src_words)));
        x[i] = _mm512_mask_broadcast_i32x4(
            x[i], 0x0f00, _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 8 * src_words)));
        x[i] = _mm512_mask_broadcast_i32x4(
            x[i], 0xf000, _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 12 * src_words)));
      }
      const __m512i lo01 = _mm512_unpacklo_epi32(x[0], x[1]), hi01 = _mm512_unpackhi_epi32(x[0], x[1]);
      const __m512i lo23 = _mm512_unpacklo_epi32(x[2], x[3]), hi23 = _mm512_unpackhi_epi32(x[2], x[3]);
      uint32_t* out = dst + w * 64 + t;
      _mm512_storeu_si512(out, _mm512_unpacklo_epi64(lo01, lo23));
      _mm512_storeu_si512(out + 64, _mm512_unpackhi_epi64(lo01, lo23));
      _mm512_storeu_si512(out + 128, _mm512_unpacklo_epi64(hi01, hi23));
      _mm512_storeu_si512(out + 192, _mm512_unpackhi_epi64(hi01, hi23));
    }
  }
}

inline __m512i RoundTwo(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// The permutations that interleave the 32 bf16 of two rows into pairs.
inline __m512i InterleaveIndex(int first) {
  alignas(64) uint16_t index[32];
  for (int i = 0; i < 16; ++i) {
    index[2 * i] = static_cast<uint16_t>(first + i);
    index[2 * i + 1] = static_cast<uint16_t>(32 + first + i);
  }
  return _mm512_load_si512(index);
}

inline const void* PackKeys(const void* rows, int dp, int n_tokens, void* buffer) {
  TransposeWords(static_cast<const uint32_t*>(rows), n_tokens, dp / 2, dp / 2,
                 static_cast<uint32_t*>(buffer));
  return buffer;
}

inline const void* PackValues(const void* rows, int dp, void* buffer) {
  const auto* in = static_cast<const uint16_t*>(rows);
  auto* out = static_cast<uint16_t*>(buffer);
  const __m512i low = InterleaveIndex(0), high = InterleaveIndex(16);
  for (int t = 0; t < 64; t += 2) {
    for (int c = 0; c < dp; c += 32) {
      const __m512i x = _mm512_loadu_si512(in + t * dp + c);
      const __m512i y = _mm512_loadu_si512(in + (t + 1) * dp + c);
      uint16_t* pair = out + t * dp + 2 * c;
      _mm512_storeu_si512(pair, _mm512_permutex2var_epi16(x, low, y));
      _mm512_storeu_si512(pair + 32, _mm512_permutex2var_epi16(x, high, y));
    }
  }
  return buffer;
}

inline const void* Round(const float* in, size_t n, void* buffer) {
  auto* out = static_cast<uint16_t*>(buffer);
  for (size_t i = 0; i < n; i += 32) {
    _mm512_storeu_si512(out + i, RoundTwo(_mm512_loadu_ps(in + i), _mm512_loadu_ps(in + i + 16)));
  }
  return buffer;
}

inline const void* PackFloatKeys(const float* rows, int dp, void* buffer) {
  auto* out = static_cast<uint32_t*>(buffer);
  for (int c = 0; c < dp; c += 32) {
    alignas(64) uint32_t words[64 * 16];
    for (int t = 0; t < 64; ++t) {
      const float* row = rows + t * dp + c;
      _mm512_store_si512(words + t * 16, RoundTwo(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16)));
    }
    TransposeWords(words, 64, 16, 16, out + c / 2 * 64);
  }
  return buffer;
}

inline const void* PackFloatValues(const float* rows, int dp, void* buffer) {
  auto* out = static_cast<uint16_t*>(buffer);
  alignas(64) uint16_t index[32];
  for (int i = 0; i < 16; ++i)
    index[2 * i] = static_cast<uint16_t>(i), index[2 * i + 1] = static_cast<uint16_t>(16 + i);
  const __m512i interleave = _mm512_load_si512(index);
  for (int t = 0; t < 64; t += 2) {
    for (int c = 0; c < dp; c += 16) {
      const float* row = rows + t * dp + c;
      const __m512i pair = RoundTwo(_mm512_loadu_ps(row), _mm512_loadu_ps(row + dp));
      _mm512_storeu_si512(out + t * dp + 2 * c, _mm512_permutexvar_epi16(interleave, pair));
    }
  }
  return buffer;
}

// kRows rows times two vectors of columns: 2 kRows sums, 2 of b and a broadcast in 32 registers. With kPlain,
// b is rows of bf16 that are paired on the way.
template <int kRows, bool kPlain>
void GemmRows(const GemmArgs& g, int row) {
  const auto* a = static_cast<const uint16_t*>(g.a) + static_cast<size_t>(row) * g.lda;
  constexpr int kLines = kPlain ? 3 : 2;  // a k: together with the scores' a page and a fifth in its time
  PageFetch fetch = g.fetch != nullptr ? *g.fetch : PageFetch();
  for (int n = 0; n < g.n; n += 32) {
    const auto* b = kPlain ? reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(g.b) + n)
                           : static_cast<const uint32_t*>(g.b) + n;
    const __m512i low = InterleaveIndex(0), high = InterleaveIndex(16);
    float* c = g.c + static_cast<size_t>(row) * g.ldc + n;
    __m512 s0[kRows], s1[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      s0[r] = g.accumulate ? _mm512_loadu_ps(c + r * g.ldc) : _mm512_setzero_ps();
      s1[r] = g.accumulate ? _mm512_loadu_ps(c + r * g.ldc + 16) : _mm512_setzero_ps();
    }
    for (int k = 0; k < g.k; k += 2) {
      __m512i x0, x1;
      if constexpr (kPlain) {
        const __m512i even = _mm512_loadu_si512(b), odd = _mm512_loadu_si512(b + g.ldb / 2);
        x0 = _mm512_permutex2var_epi16(even, low, odd), x1 = _mm512_permutex2var_epi16(even, high, odd);
      } else {
        x0 = _mm512_loadu_si512(b), x1 = _mm512_loadu_si512(b + 16);
      }
      const auto b0 = (__m512bh)x0, b1 = (__m512bh)x1;
      b += g.ldb;
      fetch.Lines<kLines>();
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        int pair;
        std::memcpy(&pair, a + r * g.lda + k, sizeof(pair));
        const auto x = (__m512bh)_mm512_set1_epi32(pair);
        s0[r] = _mm512_dpbf16_ps(s0[r], x, b0);
        s1[r] = _mm512_dpbf16_ps(s1[r], x, b1);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_ps(c + r * g.ldc, s0[r]);
      _mm512_storeu_ps(c + r * g.ldc + 16, s1[r]);
    }
  }
  if (g.fetch != nullptr) *g.fetch = fetch;
}

// kRows rows times four vectors: each input is loaded for four products, and what begins and ends a block of
// sums comes half as often.
template <int kRows, int kLines>
void GemmWide(const GemmArgs& g, int row, PageFetch* fetch) {
  const auto* a = static_cast<const uint16_t*>(g.a) + static_cast<size_t>(row) * g.lda;
  for (int n = 0; n < g.n; n += 64) {
    const auto* b = static_cast<const uint32_t*>(g.b) + n;
    float* c = g.c + static_cast<size_t>(row) * g.ldc + n;
    __m512 sum[kRows][4];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        sum[r][v] = g.accumulate ? _mm512_loadu_ps(c + r * g.ldc + 16 * v) : _mm512_setzero_ps();
    }
    for (int k = 0; k < g.k; k += 2, b += g.ldb) {
      __m512bh w[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) w[v] = (__m512bh)_mm512_loadu_si512(b + 16 * v);
      fetch->Lines<kLines>();
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int pair;
        std::memcpy(&pair, a + r * g.lda + k, sizeof(pair));
        const auto x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, w[v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) _mm512_storeu_ps(c + r * g.ldc + 16 * v, sum[r][v]);
    }
  }
}

inline constexpr int kMaxRows = 13;  // and two indices where b is plain

template <bool kPlain, int... kRows>
void GemmBlock(const GemmArgs& g, int row, int n_rows, std::integer_sequence<int, kRows...>) {
  using Block = void (*)(const GemmArgs&, int);
  static constexpr Block kBlocks[] = {GemmRows<kRows + 1, kPlain>...};
  kBlocks[n_rows - 1](g, row);
}

template <int kLines>
void GemmWideInGroups(const GemmArgs& g) {
  using Wide = void (*)(const GemmArgs&, int, PageFetch*);
  static constexpr Wide kWide[] = {GemmWide<1, kLines>, GemmWide<2, kLines>, GemmWide<3, kLines>,
                                   GemmWide<4, kLines>};
  PageFetch fetch = g.fetch != nullptr ? *g.fetch : PageFetch();
  for (int row = 0, left = (g.m + 3) / 4; left > 0; --left) {
    const int n = (g.m - row) / left;  // as even as can be
    kWide[n - 1](g, row, &fetch);
    row += n;
  }
  if (g.fetch != nullptr) *g.fetch = fetch;
}

template <bool kPlain>
void Gemm(const GemmArgs& g) {
  if (!kPlain && g.n % 64 == 0 && g.m > 13)
    return g.fetch == nullptr ? GemmWideInGroups<0>(g) : GemmWideInGroups<1>(g);
  const int n_blocks = (g.m + kMaxRows - 1) / kMaxRows;
  for (int i = 0; i < n_blocks; ++i) {
    const int begin = g.m * i / n_blocks, end = g.m * (i + 1) / n_blocks;
    GemmBlock<kPlain>(g, begin, end - begin, std::make_integer_sequence<int, kMaxRows>());
  }
}

}  // namespace t6::cpu::bf16_kernels
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")
namespace t6::cpu::amx_kernels {

// All eight tiles are 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[8] = {16, 16, 16, 16, 16, 16, 16, 16}, unused[8] = {};
};
static_assert(sizeof(TileConfig) == 64);

inline void Enter() {
  // Constant memory: GCC 12 believes that the instruction reads 8 bytes, and drops stores to the rest of a
  // local one.
  static constexpr TileConfig kConfig;
  _tile_loadconfig(&kConfig);
}

inline void Leave() { _tile_release(); }

// 16 or 32 rows by 32 columns: sums in tiles 0..3, a in 4 and 5, b in 6 and 7.
template <bool kTwo>
void Block(const GemmArgs& g, int row, int column) {
  const auto* a = static_cast<const uint16_t*>(g.a) + static_cast<size_t>(row) * g.lda;
  const auto* b = static_cast<const uint32_t*>(g.b) + column;
  float* c = g.c + static_cast<size_t>(row) * g.ldc + column;
  const size_t a_bytes = g.lda * sizeof(uint16_t), b_bytes = g.ldb * sizeof(uint32_t),
               c_bytes = g.ldc * sizeof(float);
  if (g.accumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    if constexpr (kTwo) {
      _tile_loadd(2, c + 16 * g.ldc, c_bytes);
      _tile_loadd(3, c + 16 * g.ldc + 16, c_bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTwo) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int k = 0; k < g.k; k += 32) {
    const uint32_t* bk = b + static_cast<size_t>(k / 2) * g.ldb;
    _tile_loadd(6, bk, b_bytes);
    _tile_loadd(7, bk + 16, b_bytes);
    _tile_loadd(4, a + k, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwo) {
      _tile_loadd(5, a + 16 * g.lda + k, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  if constexpr (kTwo) {
    _tile_stored(2, c + 16 * g.ldc, c_bytes);
    _tile_stored(3, c + 16 * g.ldc + 16, c_bytes);
  }
}

// 16 rows by 64 columns: four sums at a time hide a product's latency where there is only one group of rows.
inline void WideBlock(const GemmArgs& g, int row, int column) {
  const auto* a = static_cast<const uint16_t*>(g.a) + static_cast<size_t>(row) * g.lda;
  const auto* b = static_cast<const uint32_t*>(g.b) + column;
  float* c = g.c + static_cast<size_t>(row) * g.ldc + column;
  const size_t a_bytes = g.lda * sizeof(uint16_t), b_bytes = g.ldb * sizeof(uint32_t),
               c_bytes = g.ldc * sizeof(float);
  if (g.accumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    _tile_loadd(2, c + 32, c_bytes);
    _tile_loadd(3, c + 48, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int k = 0; k < g.k; k += 32) {
    const uint32_t* bk = b + static_cast<size_t>(k / 2) * g.ldb;
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(5, bk, b_bytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, bk + 16, b_bytes);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, bk + 32, b_bytes);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, bk + 48, b_bytes);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c + 32, c_bytes);
  _tile_stored(3, c + 48, c_bytes);
}

inline void Gemm(const GemmArgs& g) {
  int row = 0;
  for (; row + 16 < g.m; row += 32) {
    for (int n = 0; n < g.n; n += 32) Block<true>(g, row, n);
  }
  if (row < g.m) {
    int n = 0;
    for (; n + 64 <= g.n; n += 64) WideBlock(g, row, n);
    if (n < g.n) Block<false>(g, row, n);
  }
}

}  // namespace t6::cpu::amx_kernels
#pragma GCC pop_options
#endif  // HWY_ARCH_X86_64
