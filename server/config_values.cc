#include "server/config_values.h"

#include <fmt/ranges.h>

#include <boost/asio/ip/address.hpp>
#include <charconv>
#include <cmath>
#include <limits>

#include "server/error_map.h"

namespace t6::server {
namespace {

// The whole of `text`, or false.
template <typename T>
bool ParseNumber(std::string_view text, T* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size();
}

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr Unit kUnits[] = {
    {"", 1},      {"B", 1},      {"KB", 1e3},        {"MB", 1e6},           {"GB", 1e9},
    {"TB", 1e12}, {"KiB", 1024}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
};

}  // namespace

StatusOr<int64_t> ParseInteger(std::string_view text, int64_t least, int64_t most) {
  int64_t value = 0;
  if (!ParseNumber(text, &value)) return InvalidArgument("\"{}\" is not a whole number", Clipped(text));
  if (value < least || value > most) return InvalidArgument("{} is not from {} to {}", value, least, most);
  return value;
}

StatusOr<double> ParseDecimal(std::string_view text, double least, double most) {
  double value = 0;
  if (!ParseNumber(text, &value)) return InvalidArgument("\"{}\" is not a number", Clipped(text));
  if (!(value >= least && value <= most))
    return InvalidArgument("{} is not from {} to {}", Clipped(text), least, most);
  return value;
}

StatusOr<size_t> ParseSize(std::string_view text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  double number = 0;
  if (digits == 0 || !ParseNumber(text.substr(0, digits), &number)) {
    return InvalidArgument("\"{}\" is not a size such as 4GiB or 4096", Clipped(text));
  }
  for (const Unit& unit : kUnits) {
    if (text.substr(digits) != unit.name) continue;
    const double bytes = std::floor(number * unit.bytes);
    if (bytes > 1e15) return InvalidArgument("{} is more than any machine has", Clipped(text));
    return static_cast<size_t>(bytes);
  }
  return InvalidArgument("\"{}\" is no unit of size; B, KB, MB, GB, TB, KiB, MiB, GiB and TiB are",
                         Clipped(text.substr(digits)));
}

StatusOr<absl::Duration> ParseDuration(std::string_view text) {
  absl::Duration value;
  double seconds = 0;
  if (ParseNumber(text, &seconds)) {
    value = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(AbslView(text), &value)) {
    return InvalidArgument("\"{}\" is not a duration such as 5s, 1m30s or 500ms", Clipped(text));
  }
  if (!(value >= absl::ZeroDuration() && value <= absl::Hours(24))) {
    return InvalidArgument("{} is not from 0s to 24h", Clipped(text));
  }
  return value;
}

StatusOr<ListenAddress> ParseAddress(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) {
    return InvalidArgument("\"{}\" is not ADDRESS:PORT, such as 127.0.0.1:8000", Clipped(text));
  }
  uint16_t port = 0;
  if (!ParseNumber(text.substr(colon + 1), &port)) {
    return InvalidArgument("\"{}\" in \"{}\" is not a port from 0 to 65535", Clipped(text.substr(colon + 1)),
                           Clipped(text));
  }
  std::string_view host = text.substr(0, colon);
  const bool brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (brackets) host = host.substr(1, host.size() - 2);
  if (host == "localhost") host = "127.0.0.1";
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(std::string(host), error);
  if (error || address.is_v6() != brackets) {
    return InvalidArgument("\"{}\" in \"{}\" is not a numeric address (IPv6 in brackets) or localhost",
                           Clipped(host), Clipped(text));
  }
  return ListenAddress{address.to_string(), port};
}

StatusOr<std::string> ParseChoice(std::string_view text, std::initializer_list<std::string_view> choices) {
  for (std::string_view choice : choices) {
    if (text == choice) return std::string(text);
  }
  return InvalidArgument("\"{}\" is none of {}", Clipped(text), fmt::join(choices, ", "));
}

}  // namespace t6::server
