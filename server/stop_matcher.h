// Stop strings in a text that comes in pieces: lets through what no stop string can reach any more, and finds
// the first that is complete (of two that end together, the longer), wherever the pieces were cut. Not
// thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace t6::server {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stop) : stop_(std::move(stop)) {}

  // Appends to `out` the text that is certain. With a match, that is all before it, and nothing may be pushed
  // any more.
  void Push(std::string_view piece, std::string* out);
  // The text ended: what was held back is certain.
  void Flush(std::string* out);
  const std::optional<std::string>& match() const { return match_; }

 private:
  const std::vector<std::string> stop_;
  std::string held_;
  std::optional<std::string> match_;
};

}  // namespace t6::server
