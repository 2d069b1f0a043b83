// Flags of a command line: a table of them, and how one is taken. Pure functions; errors are texts that quote
// what was typed.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace t6::cli {

template <typename Options>
struct Flag {
  std::string_view name;
  std::string_view commands;  // which accept it
  bool takes_value;
  // Returns what is wrong with the value, or nothing.
  std::function<std::string(Options&, const std::string&)> set;
};

// Takes the flag at `at` and its value, and moves `at` to the last of the two.
template <typename Options>
std::string TakeFlag(const std::vector<Flag<Options>>& flags, const std::string& command,
                     const std::vector<std::string>& arguments, size_t& at, Options& options) {
  const std::string& argument = arguments[at];
  const size_t equals = argument.find('=');
  const std::string name = argument.substr(0, equals);
  const auto flag = std::find_if(flags.begin(), flags.end(), [&](const auto& f) { return f.name == name; });
  if (flag == flags.end()) return fmt::format("unknown flag '{}'", name);
  if (flag->commands.find(command) == std::string_view::npos)
    return fmt::format("{} has no flag '{}'", command, name);
  std::string value;
  if (equals != std::string::npos) {
    if (!flag->takes_value) return fmt::format("{} takes no value", name);
    value = argument.substr(equals + 1);
  } else if (flag->takes_value) {
    if (++at == arguments.size()) return fmt::format("{} needs a value", name);
    value = arguments[at];
  }
  const std::string error = flag->set(options, value);
  return error.empty() ? "" : fmt::format("{}: {}", name, error);
}

// `out` is a number or an optional of one.
template <typename Number, typename Out>
std::string ParseNumber(const std::string& text, Number lowest, Number highest, Out& out) {
  Number value{};
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end || !(value >= lowest && value <= highest)) {
    return fmt::format("'{}' is not a number from {} to {}", text, lowest, highest);
  }
  out = value;
  return "";
}

}  // namespace t6::cli
