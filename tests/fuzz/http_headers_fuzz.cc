// Any bytes as a request's target, Host, Origin, x-request-id and Authorization, and as the file of API keys:
// paths are clean, ids fit for a header, and nobody is let in.
#include "engine/base/check.h"
#include "server/auth.h"
#include "server/http/cors.h"
#include "server/http/host_policy.h"
#include "server/http/url.h"
#include "server/request_id.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/temporary_folder.h"

std::string FuzzSeed() {
  return "http://localhost:8000/v1/models/a%2Fb?x=1\nBearer t6-0123456789abcdef [::1]:80 "
         "https://app.example\n"
         "acme sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n# a comment\n";
}

namespace {

void CheckPath(std::string_view target) {
  const auto path = t6::server::PathOfTarget(target);
  if (!path.has_value()) return;
  T6_CHECK(!path->empty() && (path->front() == '/' || *path == "*"));
  for (const char c : *path) T6_CHECK(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F, "{}", *path);
}

void CheckPolicies(std::string_view text) {
  t6::server::HttpRequest request;
  request.method = "OPTIONS";
  for (const char* header : {"Host", "Origin", "Access-Control-Request-Method"}) {
    request.headers.set(header, boost::beast::string_view(text.data(), text.size()));
  }
  const t6::server::HostPolicy hosts({"t6.example"}, /*is_local=*/true);
  const t6::server::CorsPolicy cors({"https://app.example"});
  const t6::Status allowed = hosts.Check(request);
  T6_CHECK(allowed.ok() || allowed.code() == absl::StatusCode::kPermissionDenied);
  if (cors.IsAllowedPreflight(request)) T6_CHECK(text == "https://app.example", "{}", text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const t6::testing::TemporaryFolder folder;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::string id = t6::server::RequestIdFrom(text);
  T6_CHECK(t6::server::IsValidRequestId(id), "{}", id);
  const auto keys = t6::server::ApiKeys::Load(folder.Write("keys", text));
  T6_CHECK(keys.ok() ? (*keys)->size() > 0 : !keys.status().message().empty());
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    CheckPath(line);
    if (line.size() < 60000) CheckPolicies(line);  // a field's bound in Beast
    if (keys.ok()) T6_CHECK(!(*keys)->Check(line, "http").ok());
    begin = end + 1;
  }
  return 0;
}
