// The most arithmetic that a core does: products in registers alone, with the best instructions that the CPU
// has.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "bench/ceiling.h"
#include "engine/backend/cpu/gemm_tile.h"

namespace t6::bench {

inline constexpr int kPeakRounds = 200000;

// Each returns the floating-point operations it did.
__attribute__((target("avx2,fma"))) inline double SpinAvx2() {
  // Each sum starts elsewhere, or the compiler would see that they are all the same one.
  __m256 sum[12], x = _mm256_set1_ps(1e-9f);
  for (int j = 0; j < 12; ++j) sum[j] = _mm256_set1_ps(static_cast<float>(j));
  for (int i = 0; i < kPeakRounds; ++i) {
    for (__m256& s : sum) s = _mm256_fmadd_ps(x, x, s);
    asm volatile("" : "+x"(x));
  }
  for (__m256& s : sum) asm volatile("" : : "x"(s));
  return 12.0 * 16 * kPeakRounds;
}

__attribute__((target("avx512f"))) inline double SpinAvx512() {
  __m512 sum[16], x = _mm512_set1_ps(1e-9f);
  for (int j = 0; j < 16; ++j) sum[j] = _mm512_set1_ps(static_cast<float>(j));
  for (int i = 0; i < kPeakRounds; ++i) {
    for (__m512& s : sum) s = _mm512_fmadd_ps(x, x, s);
    asm volatile("" : "+v"(x));
  }
  for (__m512& s : sum) asm volatile("" : : "v"(s));
  return 16.0 * 32 * kPeakRounds;
}

__attribute__((target("avx512f,avx512bf16"))) inline double SpinAvx512Bf16() {
  __m512 sum[16];
  for (int j = 0; j < 16; ++j) sum[j] = _mm512_set1_ps(static_cast<float>(j));
  __m512i x = _mm512_set1_epi32(0);
  for (int i = 0; i < kPeakRounds; ++i) {
    for (__m512& s : sum) s = _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)x);
    asm volatile("" : "+v"(x));
  }
  for (__m512& s : sum) asm volatile("" : : "v"(s));
  return 16.0 * 64 * kPeakRounds;
}

__attribute__((target("amx-tile,amx-bf16"))) inline double SpinAmxBf16() {
  struct alignas(64) Config {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Config
      config;  // in constant memory: the compiler drops stores that it thinks nobody reads
  _tile_loadconfig(&config);
  _tile_zero(6);
  _tile_zero(7);
  for (int i = 0; i < kPeakRounds / 10; ++i) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
  return 6.0 * 16 * 16 * 32 * 2 * (kPeakRounds / 10);
}

// FLOP/s of `threads` threads at once.
inline double PeakFlops(DType dtype, int threads) {
  double (*spin)() = SpinAvx2;
  if (__builtin_cpu_supports("avx512f")) spin = SpinAvx512;
  if (dtype == DType::kBF16 && cpu::HasAvx512Bf16()) spin = SpinAvx512Bf16;
  if (dtype == DType::kBF16 && cpu::HasAmxBf16()) spin = SpinAmxBf16;
  std::atomic<int> arrived{0};
  std::vector<double> rates(threads);
  const auto work = [&](int worker) {
    arrived.fetch_add(1);
    while (arrived.load() < threads) {
    }
    for (int repeat = 0; repeat < 5; ++repeat) {
      const double start = Seconds();
      const double done = spin();
      rates[worker] = std::max(rates[worker], done / (Seconds() - start));
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& t : others) t.join();
  double sum = 0;
  for (const double rate : rates) sum += rate;
  return sum;
}

}  // namespace t6::bench
