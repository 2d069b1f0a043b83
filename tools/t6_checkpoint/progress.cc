#include "tools/t6_checkpoint/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "tools/t6_checkpoint/arguments.h"

namespace t6 {

Progress::Progress(std::string what, uint64_t total_bytes)
    : what_(std::move(what)),
      total_(std::max<uint64_t>(total_bytes, 1)),
      terminal_(isatty(STDERR_FILENO) == 1),
      shown_(Clock::now()) {}

Progress::~Progress() {
  if (!terminal_) return;
  Show();
  fmt::print(stderr, "\n");
}

void Progress::Advance(uint64_t bytes) {
  done_ += bytes;
  const auto interval = terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10);
  if (Clock::now() - shown_ >= interval) Show();
}

void Progress::Show() {
  shown_ = Clock::now();
  constexpr uint64_t kWidth = 40;
  const uint64_t filled = std::min(done_, total_) * kWidth / total_;
  const std::string amount = fmt::format("{} of {}", ShowBytes(done_), ShowBytes(total_));
  if (terminal_) {
    fmt::print(stderr, "\r{} [{:<{}}] {}   ", what_, std::string(filled, '='), kWidth, amount);
    std::fflush(stderr);
  } else {
    fmt::print(stderr, "{} {}\n", what_, amount);
  }
}

}  // namespace t6
