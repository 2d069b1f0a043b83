#include "clients/cli/bench/sse_reader.h"

namespace t6::cli {
namespace {

constexpr size_t kLargestEvent = size_t{16} << 20;

}  // namespace

bool SseReader::Feed(std::string_view bytes, const std::function<void(std::string_view data)>& event) {
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    const std::string_view part = bytes.substr(0, end);
    if (line_.size() + data_.size() + part.size() > kLargestEvent) return false;
    line_ += part;
    if (end == std::string_view::npos) return true;
    bytes.remove_prefix(end + 1);
    if (line_.ends_with('\r')) line_.pop_back();
    TakeLine(line_, event);
    line_.clear();
  }
  return true;
}

void SseReader::TakeLine(std::string_view line, const std::function<void(std::string_view)>& event) {
  if (line.empty()) {
    if (has_data_) event(data_);
    data_.clear();
    has_data_ = false;
    return;
  }
  constexpr std::string_view kData = "data:";
  if (!line.starts_with(kData)) return;  // comments, ids
  line.remove_prefix(kData.size());
  if (line.starts_with(' ')) line.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += line;
  has_data_ = true;
}

}  // namespace t6::cli
