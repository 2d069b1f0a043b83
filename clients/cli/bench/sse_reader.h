// Server-sent events from bytes as they come: the data of each event, whole. What comes is bounded.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace t6::cli {

class SseReader {
 public:
  // False: an event was longer than 16 MiB; nothing more is taken then. `event` gets each event's data.
  bool Feed(std::string_view bytes, const std::function<void(std::string_view data)>& event);

 private:
  void TakeLine(std::string_view line, const std::function<void(std::string_view)>& event);

  std::string line_;  // without its end so far
  std::string data_;  // of the event so far
  bool has_data_ = false;
};

}  // namespace t6::cli
