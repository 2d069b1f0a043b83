// What the machine can do, measured in the same run as the figures that are held against it.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "bench/timing.h"
#include "engine/base/check.h"
#include "engine/tensor/buffer.h"

namespace t6::bench {

// Each of these reads a part of the buffer with wide loads and as little else as possible, so that nothing
// but the reading takes time. Tried on Zen 4 and slower everywhere: 512-bit loads in one stream, prefetching
// 1 to 16 KiB ahead into either cache.
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

// Two streams at once: where caches are crowded this is the fastest.
__attribute__((target("avx512f"))) inline uint64_t SumAvx512(const uint8_t* first, size_t bytes) {
  __m512i sums[8] = {};
  const uint8_t* second = first + bytes / 2;
  for (size_t i = 0; i < bytes / 2; i += 256) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[j] = _mm512_xor_si512(sums[j], _mm512_load_si512(first + i + 64 * j));
      sums[4 + j] = _mm512_xor_si512(sums[4 + j], _mm512_load_si512(second + i + 64 * j));
    }
  }
  for (int j = 1; j < 8; ++j) sums[0] = _mm512_xor_si512(sums[0], sums[j]);
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, sums[0]);
  return lanes[0];
}

inline uint64_t SumPlain(const uint8_t* first, size_t bytes) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes; i += 64) {
    for (int j = 0; j < 8; ++j) sums[j] ^= reinterpret_cast<const uint64_t*>(first + i)[j];
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

// The rate at which `threads` threads read a buffer of `bytes` again and again, each its own part. A buffer
// that fits a cache is read from that cache, as a small model's weights are.
class ReadCeiling {
 public:
  ReadCeiling(size_t bytes, int threads)
      : threads_(threads), part_(bytes / threads / 512 * 512), buffer_(Filled(bytes)) {
    const bool wide = __builtin_cpu_supports("avx2"), wider = __builtin_cpu_supports("avx512f");
    readers_.push_back(wide ? SumAvx2 : SumPlain);
    if (wider) readers_.push_back(SumAvx512);
    passes_ = static_cast<int>(std::clamp<size_t>((size_t{1} << 30) / bytes, 8, 200)) * readers_.size();
  }

  // The ways of reading take turns; of each the median of its passes counts, and the faster one is returned.
  double BytesPerSecond() {
    std::vector<std::vector<double>> times(threads_);
    std::atomic<int> arrived{0};
    std::vector<std::thread> others;
    for (int i = 1; i < threads_; ++i) others.emplace_back([&, i] { Read(i, &arrived, &times[i]); });
    Read(0, &arrived, &times[0]);
    for (std::thread& t : others) t.join();
    double least = std::numeric_limits<double>::infinity();
    for (int reader = 0; reader < static_cast<int>(readers_.size()); ++reader) {
      std::vector<double> slowest;
      for (int pass = reader; pass < passes_; pass += static_cast<int>(readers_.size())) {
        slowest.push_back(0);
        for (int w = 0; w < threads_; ++w) slowest.back() = std::max(slowest.back(), times[w][pass]);
      }
      least = std::min(least, Median(slowest));
    }
    return static_cast<double>(part_) * threads_ / least;
  }

 private:
  static HostBuffer Filled(size_t bytes) {
    auto buffer = HostBuffer::Allocate(bytes);
    T6_CHECK(buffer.ok());
    for (size_t i = 0; i < bytes; i += 64) buffer->data()[i] = static_cast<uint8_t>(i);
    return std::move(*buffer);
  }

  void Read(int worker, std::atomic<int>* arrived, std::vector<double>* times) const {
    const uint8_t* first = buffer_.data() + part_ * worker;
    volatile uint64_t sink = 0;
    for (int pass = 0; pass < passes_; ++pass) {
      arrived->fetch_add(1);
      while (arrived->load(std::memory_order_relaxed) < threads_ * (pass + 1)) {
      }
      const double start = Seconds();
      sink = readers_[pass % readers_.size()](first, part_);
      times->push_back(Seconds() - start);
    }
    (void)sink;
  }

  int threads_;
  size_t part_;  // bytes of one thread
  HostBuffer buffer_;
  int passes_ = 0;
  std::vector<uint64_t (*)(const uint8_t* first, size_t bytes)> readers_;
};

inline double ReadBandwidth(size_t bytes, int threads) {
  return ReadCeiling(bytes, threads).BytesPerSecond();
}

// Median time that a cache line takes from one thread to another and back. A virtual machine's cores may lie
// under one cache now and under two a minute later: 100 to 150 ns or some 500 on Zen 4, and all else differs.
inline double RoundTripSeconds() {
  constexpr int kTrips = 4000;
  struct alignas(64) Line {
    std::atomic<int> trip{0};
  } there, back;
  std::thread other([&] {
    for (int i = 1; i <= kTrips; ++i) {
      while (there.trip.load(std::memory_order_acquire) != i) {
      }
      back.trip.store(i, std::memory_order_release);
    }
  });
  std::vector<double> times;
  for (int i = 1; i <= kTrips; ++i) {
    const double start = Seconds();
    there.trip.store(i, std::memory_order_release);
    while (back.trip.load(std::memory_order_acquire) != i) {
    }
    times.push_back(Seconds() - start);
  }
  other.join();
  return Median(times);
}

}  // namespace t6::bench
