#include "tools/t6_checkpoint/arguments.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>

namespace t6 {
namespace {

// The whole of `text` as a number.
template <typename T>
bool ToNumber(std::string_view text, T& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

constexpr struct {
  std::string_view suffix;
  uint64_t bytes;
} kUnits[] = {{"KiB", 1ull << 10}, {"MiB", 1ull << 20},  {"GiB", 1ull << 30},
              {"TiB", 1ull << 40}, {"kB", 1000},         {"KB", 1000},
              {"MB", 1000'000},    {"GB", 1000'000'000}, {"TB", 1000'000'000'000}};

}  // namespace

StatusOr<Arguments> Arguments::Parse(const std::vector<std::string>& args, const std::vector<Flag>& flags,
                                     size_t n_positional) {
  Arguments out;
  for (size_t i = 0; i < args.size(); ++i) {
    if (!args[i].starts_with("--")) {
      out.positional_.push_back(args[i]);
      continue;
    }
    const size_t equals = args[i].find('=');
    const std::string name = args[i].substr(0, equals);
    const auto flag = std::find_if(flags.begin(), flags.end(), [&](const Flag& f) { return f.name == name; });
    if (flag == flags.end()) return InvalidArgument("unknown flag {}", name);
    const bool inlined = equals != std::string::npos;
    if (flag->value.empty()) {
      if (inlined) return InvalidArgument("{} takes no value", name);
      out.values_.emplace(name, "");
    } else if (inlined) {
      out.values_.emplace(name, args[i].substr(equals + 1));
    } else if (i + 1 < args.size()) {
      out.values_.emplace(name, args[++i]);
    } else {
      return InvalidArgument("{} needs a value: {}", name, flag->value);
    }
  }
  if (out.positional_.size() < n_positional) return InvalidArgument("a folder is missing");
  if (out.positional_.size() > n_positional) {
    return InvalidArgument("\"{}\" is one argument too many", out.positional_[n_positional]);
  }
  return out;
}

std::string Arguments::Text(std::string_view flag, std::string_view otherwise) const {
  const std::vector<std::string> all = All(flag);
  return all.empty() ? std::string(otherwise) : all.back();
}

std::vector<std::string> Arguments::All(std::string_view flag) const {
  std::vector<std::string> all;
  const auto [first, last] = values_.equal_range(flag);
  for (auto it = first; it != last; ++it) all.push_back(it->second);
  return all;
}

StatusOr<int64_t> Arguments::Int(std::string_view flag, int64_t otherwise, int64_t least,
                                 int64_t most) const {
  if (!Has(flag)) return otherwise;
  int64_t number = 0;
  const std::string text = Text(flag, "");
  if (ToNumber(text, number) && number >= least && number <= most) return number;
  return MakeStatus(absl::StatusCode::kOutOfRange, "{} is \"{}\", not a number from {} to {}", flag, text,
                    least, most);
}

StatusOr<std::string> Arguments::Choice(std::string_view flag,
                                        const std::vector<std::string_view>& choices) const {
  const std::string text = Text(flag, choices.front());
  if (std::find(choices.begin(), choices.end(), text) != choices.end()) return text;
  return MakeStatus(absl::StatusCode::kOutOfRange, "{} is \"{}\", not one of {}", flag, text,
                    fmt::join(choices, ", "));
}

StatusOr<uint64_t> Arguments::Bytes(std::string_view flag, uint64_t otherwise) const {
  if (!Has(flag)) return otherwise;
  const std::string text = Text(flag, "");
  std::string_view digits = text;
  uint64_t unit = 1, number = 0;
  for (const auto& u : kUnits) {
    if (!digits.ends_with(u.suffix)) continue;
    digits.remove_suffix(u.suffix.size());
    unit = u.bytes;
    break;
  }
  if (ToNumber(digits, number) && number > 0 && number <= std::numeric_limits<int64_t>::max() / unit) {
    return number * unit;
  }
  return MakeStatus(absl::StatusCode::kOutOfRange, "{} is \"{}\", not a size such as 500MB or 5GiB", flag,
                    text);
}

std::string DescribeFlags(const std::vector<Flag>& flags) {
  std::string out;
  for (const Flag& f : flags)
    out += fmt::format("  {:<34} {}\n", fmt::format("{} {}", f.name, f.value), f.help);
  return out;
}

std::string ShowBytes(uint64_t bytes) {
  if (bytes < 10'000) return fmt::format("{} B", bytes);
  if (bytes < 1'000'000) return fmt::format("{:.1f} kB", static_cast<double>(bytes) / 1e3);
  if (bytes < 1'000'000'000) return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace t6
