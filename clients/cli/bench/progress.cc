#include "clients/cli/bench/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "clients/cli/bench/report.h"

namespace t6::cli {

BenchProgress::BenchProgress(std::string what, int64_t requests, std::optional<double> duration, bool quiet)
    : what_(std::move(what)),
      requests_(requests),
      duration_(duration),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) == 1),
      started_(Clock::now()),
      shown_(started_) {}

BenchProgress::~BenchProgress() {
  if (quiet_ || !terminal_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
}

bool BenchProgress::IsDue() const {
  const auto interval = terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(5);
  return !quiet_ && Clock::now() - shown_ >= interval;
}

void BenchProgress::Show(const State& state) {
  shown_ = Clock::now();
  const double seconds = std::chrono::duration<double>(shown_ - started_).count();
  const double by_count = static_cast<double>(state.done) / static_cast<double>(requests_);
  const double by_time = duration_ ? seconds / *duration_ : 0;
  const double share = std::min(1.0, std::max(by_count, by_time));
  const std::string figures = fmt::format(
      "{} done, {:.0f} a second, {} in flight, first token {} ms{}", Thousands(state.done),
      static_cast<double>(state.done) / seconds, state.in_flight, ShowMilliseconds(state.first_token_p50),
      state.failed > 0 ? fmt::format(", {} failed", Thousands(state.failed)) : "");
  if (terminal_) {
    constexpr int kWidth = 24;
    const auto filled = static_cast<size_t>(share * kWidth);
    fmt::print(stderr, "\r\033[K{} [{:<{}}] {:>3.0f} %  {}", what_, std::string(filled, '='), kWidth,
               100 * share, figures);
    std::fflush(stderr);
  } else {
    fmt::print(stderr, "{} {:.0f} %: {}\n", what_, 100 * share, figures);
  }
}

}  // namespace t6::cli
