#include "server/http/host_policy.h"

#include <algorithm>
#include <boost/asio/ip/address.hpp>

#include "absl/strings/ascii.h"
#include "server/error_map.h"

namespace t6::server {
namespace {

// "Docs.Example:8000" -> "docs.example"; "[::1]:8000" -> "::1"; "::1" stays.
std::string NameOf(std::string_view host) {
  if (host.starts_with('[')) {
    host = host.substr(1, host.find(']') - 1);
  } else if (std::count(host.begin(), host.end(), ':') == 1) {
    host = host.substr(0, host.find(':'));
  }
  if (host.ends_with('.')) host.remove_suffix(1);
  std::string name(host);
  absl::AsciiStrToLower(&name);
  return name;
}

}  // namespace

bool IsLoopback(std::string_view host) {
  const std::string name = NameOf(host);
  if (name == "localhost" || name.ends_with(".localhost")) return true;
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(name, error);
  return !error && address.is_loopback();
}

Status HostPolicy::Check(const HttpRequest& request) const {
  const std::string_view host = request.Header("host");
  const auto has = [this](std::string_view name) {
    return std::find(names_.begin(), names_.end(), name) != names_.end();
  };
  // Browsers send Origin with every POST.
  const bool asked = names_.empty() ? is_local_ && !request.Header("origin").empty() : !has("*");
  if (!asked || IsLoopback(host) || has(NameOf(host))) return absl::OkStatus();
  return Status(
      absl::StatusCode::kPermissionDenied,
      fmt::format("this server does not answer to the name \"{}\"; --allowed-host adds one", Clipped(host)));
}

}  // namespace t6::server
