// bfloat16 products with the instructions made for them: vdpbf16ps and the AMX tiles. Highway 1.0 knows
// neither, so these are intrinsics, and each function says which instructions it needs.
#include <hwy/targets.h>

#include <algorithm>
#include <array>

#include "engine/backend/cpu/gemm_tile.h"

#if HWY_ARCH_X86_64
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace t6::cpu {
namespace {

// kRows rows times kVectors vectors of columns in each of kBlocks blocks. The arrays must become registers,
// hence the pragmas. Of every four lines of p.next it asks for kLines, from the line `fetch` on.
template <int kRows, int kBlocks, int kVectors, int kLines>
void DotTile(const BlockProduct& p, int row, const char* fetch) {
  const auto* a = static_cast<const uint16_t*>(p.a) + row * p.a_stride;
  const auto* b = static_cast<const char*>(p.b);
  const size_t block_bytes = static_cast<size_t>(p.k_padded) * kBlockColumns * sizeof(uint16_t);
  __m512 sum[kRows][kBlocks][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kBlocks; ++n) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][n][v] = _mm512_setzero_ps();
    }
  }
  for (int k = 0; k < p.k_padded; k += 2) {
    __m512bh w[kBlocks][kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kBlocks; ++n) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) w[n][v] = (__m512bh)_mm512_loadu_si512(b + n * block_bytes + v * 64);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(fetch + i * 64, 0, 2);
    if constexpr (kLines > 0) fetch += kBlockColumns * 4;
    b += kBlockColumns * 4;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, a + r * p.a_stride + k, sizeof(pair));
      const auto x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (int n = 0; n < kBlocks; ++n) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[r][n][v] = _mm512_dpbf16_ps(sum[r][n][v], w[n][v], x);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kBlocks; ++n) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        _mm512_storeu_ps(p.c + (row + r) * p.c_stride + n * kBlockColumns + v * 16, sum[r][n][v]);
      }
    }
  }
}

// One row is bound by reading the weights: one block after the other, in order of memory. Blocks side by side
// are slower on Zen 4, and loads of half a line where caches are crowded.
void DotOneRow(const BlockProduct& p) {
  const auto* a = static_cast<const uint16_t*>(p.a);
  const auto* b = static_cast<const char*>(p.b);
  for (int block = 0; block < p.n_blocks; ++block) {
    __m512 sum[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] = _mm512_setzero_ps();
    for (int k = 0; k < p.k_padded; k += 2) {
      int pair;
      __builtin_memcpy(&pair, a + k, sizeof(pair));
      const auto x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        sum[v] = _mm512_dpbf16_ps(sum[v], (__m512bh)_mm512_loadu_si512(b + v * 64), x);
      b += kBlockColumns * 4;
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(p.c + block * kBlockColumns + v * 16, sum[v]);
  }
}

// 24 sums, 4 weights and one input fill the 32 registers.
constexpr int kMostRows = 6;

template <int kRows, int kLines>
void DotRows(const BlockProduct& p, int row, const char* fetch) {
  if constexpr (kRows <= 2) {
    if (p.n_blocks == 3) return DotTile<kRows, 3, 4, kLines>(p, row, fetch);
  }
  if constexpr (kRows <= 3) {
    if (p.n_blocks == 2) return DotTile<kRows, 2, 4, kLines>(p, row, fetch);
  }
  if (p.n_columns <= 16) return DotTile<kRows, 1, 1, kLines>(p, row, fetch);
  if (p.n_columns <= 32) return DotTile<kRows, 1, 2, kLines>(p, row, fetch);
  DotTile<kRows, 1, 4, kLines>(p, row, fetch);
}

using Rows = void (*)(const BlockProduct&, int row, const char* fetch);
template <int kLines>
constexpr Rows kDotRows[kMostRows] = {DotRows<1, kLines>, DotRows<2, kLines>, DotRows<3, kLines>,
                                      DotRows<4, kLines>, DotRows<5, kLines>, DotRows<6, kLines>};

}  // namespace

int BlocksAtOnceAvx512Bf16(int n_rows) { return n_rows == 1 ? 4 : n_rows == 2 ? 3 : n_rows == 3 ? 2 : 1; }

void RowsAvx512Bf16(const BlockProduct& p) {
  if (p.n_rows == 1 && p.n_columns > 32) return DotOneRow(p);
  static constexpr const Rows* kRows[3] = {kDotRows<0>, kDotRows<1>, kDotRows<2>};
  const int n_groups = (p.n_rows + kMostRows - 1) / kMostRows;  // as even as can be
  const bool fetches = p.next != nullptr && n_groups > 1;
  int row = 0;
  for (int group = 0; group < n_groups; ++group) {
    const int n = (p.n_rows - row) / (n_groups - group);
    // The next block's lines, evenly over the groups: asked for faster they would be dropped.
    const int first = fetches ? std::min(4, 4 * group / n_groups) : 0,
              lines = fetches ? 4 * (group + 1) / n_groups - first : 0;
    kRows[lines][n - 1](p, row, static_cast<const char*>(p.next) + first * 64);
    row += n;
  }
}

}  // namespace t6::cpu
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")
namespace t6::cpu {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// For 1 to 16 rows of sums (tiles 0 to 3) and inputs (tile 4): a product takes as many cycles as there are
// rows. In constant memory, because the compiler thinks that only a configuration's first bytes are read, and
// drops stores.
constexpr std::array<TileConfig, 16> kConfigs = [] {
  std::array<TileConfig, 16> configs;
  for (uint8_t n = 1; n <= 16; ++n) {
    for (int tile = 0; tile <= 4; ++tile) configs[n - 1].rows[tile] = n;
  }
  return configs;
}();

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;                         // numbers of k in one tile: 16 pairs
constexpr size_t kPairBytes = kBlockColumns * 4;       // one pair of k in a packed block
constexpr size_t kTileBytes = kTileRows * kPairBytes;  // from one tile of weights to the next in k

// Up to 16 rows x 64 columns: each weight is loaded once.
void AmxRows16(const BlockProduct& p, int row) {
  const auto* a = static_cast<const uint16_t*>(p.a) + row * p.a_stride;
  const auto* b = static_cast<const char*>(p.b);
  const size_t a_bytes = p.a_stride * 2;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int k = 0; k < p.k_padded; k += kTileDepth, b += kTileBytes) {
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(5, b, kPairBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, b + 64, kPairBytes);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, b + 128, kPairBytes);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, b + 192, kPairBytes);
    _tile_dpbf16ps(3, 4, 5);
  }
  float* c = p.c + row * p.c_stride;
  const size_t c_bytes = p.c_stride * 4;
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c + 32, c_bytes);
  _tile_stored(3, c + 48, c_bytes);
}

// 32 rows x 32 columns: four loads for four products, the most that eight tiles allow.
void AmxRows32(const BlockProduct& p, int row, int column) {
  const auto* a = static_cast<const uint16_t*>(p.a) + row * p.a_stride;
  const auto* a_low = a + kTileRows * p.a_stride;
  const auto* b = static_cast<const char*>(p.b) + column * 4;
  const size_t a_bytes = p.a_stride * 2;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int k = 0; k < p.k_padded; k += kTileDepth, b += kTileBytes) {
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(6, b, kPairBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + 64, kPairBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a_low + k, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float* c = p.c + row * p.c_stride + column;
  float* c_low = c + kTileRows * p.c_stride;
  const size_t c_bytes = p.c_stride * 4;
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c_low, c_bytes);
  _tile_stored(3, c_low + 16, c_bytes);
}

bool AskForAmx() {
  unsigned a, b, c, d;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

void RowsAmxBf16(const BlockProduct& p) {
  const int n_paired = p.n_rows / (2 * kTileRows) * (2 * kTileRows);
  if (n_paired > 0) {
    _tile_loadconfig(&kConfigs[kTileRows - 1]);
    for (int column = 0; column < kBlockColumns; column += 32) {
      for (int row = 0; row < n_paired; row += 2 * kTileRows) AmxRows32(p, row, column);
    }
  }
  for (int row = n_paired; row < p.n_rows; row += kTileRows) {
    _tile_loadconfig(&kConfigs[std::min(kTileRows, p.n_rows - row) - 1]);
    AmxRows16(p, row);
  }
  _tile_release();
}

bool HasAmxBf16() {
  static const bool has = AskForAmx();
  return has;
}

bool HasAvx512Bf16() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
}

}  // namespace t6::cpu
#pragma GCC pop_options

#else

namespace t6::cpu {
bool HasAvx512Bf16() { return false; }
bool HasAmxBf16() { return false; }
void RowsAvx512Bf16(const BlockProduct& product) { RowsBf16(product); }
int BlocksAtOnceAvx512Bf16(int /*n_rows*/) { return 1; }
void RowsAmxBf16(const BlockProduct& product) { RowsBf16(product); }
}  // namespace t6::cpu

#endif

namespace t6::cpu {

BlockKernels ChooseBlockKernels() {
  BlockKernels kernels;
  const int64_t targets = hwy::SupportedTargets();
  kernels.isa = (targets & HWY_AVX3) ? "AVX-512" : (targets & HWY_AVX2) ? "AVX2" : "no vectors";
  kernels.f32 = RowsF32;
  kernels.bf16 = RowsBf16;
  if (HasAvx512Bf16()) {
    kernels.bf16 = RowsAvx512Bf16;
    kernels.bf16_blocks_at_once = BlocksAtOnceAvx512Bf16;
    kernels.isa += " bf16";
  }
  if (HasAmxBf16()) {
    kernels.bf16 = RowsAmxBf16;
    kernels.bf16_blocks_at_once = nullptr;
    kernels.isa += " AMX";
  }
  return kernels;
}

}  // namespace t6::cpu
