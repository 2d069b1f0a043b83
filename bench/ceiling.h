// What the machine can do, measured in the same run as the figures that are held against it.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "engine/base/check.h"
#include "engine/tensor/buffer.h"

namespace t6::bench {

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double Median(std::vector<double> values) {
  T6_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Sums a part of the buffer, 512 bytes at a time: with one wide load a line nothing but the reading takes
// time.
__attribute__((target("avx2"))) inline uint64_t SumAvx2(const uint8_t* first, size_t bytes) {
  __m256i sums[16] = {};
  for (size_t i = 0; i < bytes; i += 512) {
    for (int j = 0; j < 16; ++j) {
      const auto* at = reinterpret_cast<const __m256i*>(first + i + 32 * j);
      sums[j] = _mm256_xor_si256(sums[j], _mm256_load_si256(at));
    }
  }
  for (int j = 1; j < 16; ++j) sums[0] = _mm256_xor_si256(sums[0], sums[j]);
  return static_cast<uint64_t>(_mm256_extract_epi64(sums[0], 0));
}

inline uint64_t SumPlain(const uint8_t* first, size_t bytes) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes; i += 64) {
    for (int j = 0; j < 8; ++j) sums[j] ^= reinterpret_cast<const uint64_t*>(first + i)[j];
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

// Bytes a second at which `threads` threads read a buffer of `bytes` again and again, each its own part: the
// median of many passes. A buffer that fits a cache is read from that cache, as a small model's weights are.
inline double ReadBandwidth(size_t bytes, int threads) {
  auto buffer = HostBuffer::Allocate(bytes);
  T6_CHECK(buffer.ok());
  for (size_t i = 0; i < bytes; i += 64) buffer->data()[i] = static_cast<uint8_t>(i);
  const size_t part = bytes / threads / 512 * 512;
  const int passes = static_cast<int>(std::clamp<size_t>((size_t{4} << 30) / bytes, 8, 400));
  const bool has_avx2 = __builtin_cpu_supports("avx2");
  std::atomic<int> arrived{0};
  std::vector<std::vector<double>> times(threads);
  const auto work = [&](int worker) {
    const uint8_t* first = buffer->data() + part * worker;
    volatile uint64_t sink = 0;
    for (int pass = 0; pass < passes; ++pass) {
      arrived.fetch_add(1);
      while (arrived.load(std::memory_order_relaxed) < threads * (pass + 1)) {
      }
      const double start = Seconds();
      sink = has_avx2 ? SumAvx2(first, part) : SumPlain(first, part);
      times[worker].push_back(Seconds() - start);
    }
    (void)sink;
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& t : others) t.join();
  std::vector<double> slowest(passes);
  for (int pass = 0; pass < passes; ++pass) {
    for (int w = 0; w < threads; ++w) slowest[pass] = std::max(slowest[pass], times[w][pass]);
  }
  return static_cast<double>(part) * threads / Median(slowest);
}

}  // namespace t6::bench
