#include "engine/checkpoint/bounded_json.h"

#include <set>
#include <string>
#include <utility>
#include <vector>

namespace t6 {
namespace {

// Counts brackets and commas outside strings, before anything is allocated for them.
Status CheckBounds(std::string_view text) {
  int depth = 0;
  size_t values = 1;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '[' || c == '{') ++depth, ++values;
    if (c == ']' || c == '}') --depth;
    if (c == ',') ++values;
    if (depth > kMaxJsonDepth)
      return InvalidArgument("JSON is nested deeper than {} at byte {}", kMaxJsonDepth, i);
    if (values > kMaxJsonValues) return InvalidArgument("JSON has more than {} values", kMaxJsonValues);
  }
  return absl::OkStatus();
}

}  // namespace

StatusOr<nlohmann::json> ParseBoundedJson(std::string_view text) {
  using nlohmann::json;
  T6_RETURN_IF_ERROR(CheckBounds(text));
  std::vector<std::set<std::string>> keys;  // of each object that is open
  std::string twice;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second &&
        twice.empty()) {
      twice = value.get<std::string>();
    }
    return true;
  };
  try {
    json parsed = json::parse(text.begin(), text.end(), watch);
    if (!twice.empty()) return InvalidArgument("JSON has the key \"{}\" twice", twice.substr(0, 256));
    return parsed;
  } catch (const json::exception& e) {
    return InvalidArgument("malformed JSON: {}", std::string(e.what()).substr(0, 256));
  }
}

}  // namespace t6
