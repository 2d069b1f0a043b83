// How far a long piece of work is, on standard error: a bar that is drawn over itself on a terminal, else a
// plain line every ten seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace t6 {

class Progress {
 public:
  Progress(std::string what, uint64_t total_bytes);
  // Ends the bar's line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Advance(uint64_t bytes);

 private:
  void Show();

  using Clock = std::chrono::steady_clock;
  const std::string what_;
  const uint64_t total_;
  const bool terminal_;
  uint64_t done_ = 0;
  Clock::time_point shown_;
};

}  // namespace t6
