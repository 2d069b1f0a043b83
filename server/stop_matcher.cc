#include "server/stop_matcher.h"

#include <algorithm>

#include "engine/base/check.h"

namespace t6::server {

void StopMatcher::Push(std::string_view piece, std::string* out) {
  T6_CHECK(!match_.has_value());
  const size_t old_size = held_.size();
  held_ += piece;

  // The first to end wins, which is what a reader of single characters would see.
  size_t best_end = std::string::npos;
  size_t best_start = 0;
  for (const std::string& stop : stop_) {
    const size_t from = old_size - std::min(old_size, stop.size() - 1);
    const size_t start = held_.find(stop, from);
    if (start == std::string::npos) continue;
    const size_t end = start + stop.size();
    if (end < best_end || (end == best_end && start < best_start)) {
      best_end = end;
      best_start = start;
      match_ = stop;
    }
  }
  if (match_.has_value()) {
    out->append(held_, 0, best_start);
    held_.clear();
    return;
  }

  // Hold back the longest end of the text that begins a stop string.
  size_t keep = 0;
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
    }
  }
  out->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
}

void StopMatcher::Flush(std::string* out) {
  *out += held_;
  held_.clear();
}

}  // namespace t6::server
