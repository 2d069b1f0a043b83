#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_split.h"
#include "engine/base/read_file.h"
#include "server/config_values.h"

namespace t6::server {
namespace {

constexpr size_t kMaxName = 64;
constexpr std::string_view kScheme = "sha256:";
constexpr std::string_view kPageKeyDomain = "t6d tenant";

const uint8_t* Bytes(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

// The key of "Bearer KEY"; empty when there is none.
std::string_view BearerKey(std::string_view authorization) {
  constexpr std::string_view kBearer = "bearer ";
  if (authorization.size() < kBearer.size()) return {};
  for (size_t i = 0; i < kBearer.size(); ++i) {
    if (absl::ascii_tolower(static_cast<unsigned char>(authorization[i])) != kBearer[i]) return {};
  }
  authorization.remove_prefix(kBearer.size());
  while (authorization.starts_with(' ')) authorization.remove_prefix(1);
  while (authorization.ends_with(' ')) authorization.remove_suffix(1);
  return authorization;
}

bool IsNameByte(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
}

bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxName && std::all_of(name.begin(), name.end(), IsNameByte);
}

}  // namespace

// Errors do not quote the line: somebody may have written the key itself there.
StatusOr<ApiKeys::Key> ApiKeys::ParseLine(std::string_view line) {
  const std::vector<std::string> words =
      absl::StrSplit(AbslView(line), absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (words.size() != 2) return InvalidArgument("has {} words; TENANT sha256:HEX is wanted", words.size());
  if (!IsName(words[0])) {
    return InvalidArgument("the tenant's name is not 1 to {} letters, digits, dots, dashes, underscores",
                           kMaxName);
  }
  std::string_view hex = words[1];
  if (!hex.starts_with(kScheme)) return InvalidArgument("the second word does not begin with {}", kScheme);
  hex.remove_prefix(kScheme.size());
  const auto is_digit = [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); };
  Key key{words[0], {}};
  if (hex.size() != 2 * key.digest.size() || !std::all_of(hex.begin(), hex.end(), is_digit)) {
    return InvalidArgument("{} is not followed by {} hexadecimal digits", kScheme, 2 * key.digest.size());
  }
  const std::string digest = absl::HexStringToBytes(AbslView(hex));
  std::copy(digest.begin(), digest.end(), key.digest.begin());
  return key;
}

StatusOr<ApiKeys::Table> ApiKeys::Read(const std::string& path) {
  T6_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxConfigBytes));
  Table keys;
  int number = 0;
  for (absl::string_view raw : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view line = absl::StripAsciiWhitespace(raw);
    if (line.empty() || line[0] == '#') continue;
    auto key = ParseLine({line.data(), line.size()});
    if (!key.ok()) return Annotate(key.status(), fmt::format("{}: line {}", path, number));
    for (const Key& other : keys) {
      if (other.digest == key->digest)
        return InvalidArgument("{}: line {}: the same key stands there twice", path, number);
    }
    keys.push_back(*std::move(key));
  }
  if (keys.empty())
    return InvalidArgument("{} has no key, so nobody could call; `t6 key TENANT` makes one", path);
  return keys;
}

ApiKeys::ApiKeys(std::string path, OnRefused on_refused, Table keys)
    : path_(std::move(path)),
      on_refused_(std::move(on_refused)),
      keys_(std::make_shared<const Table>(std::move(keys))) {}

StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Load(const std::string& path, OnRefused on_refused) {
  auto keys = Read(path);
  if (!keys.ok()) return Annotate(keys.status(), "--api-key-file");
  return std::unique_ptr<ApiKeys>(new ApiKeys(path, std::move(on_refused), *std::move(keys)));
}

Status ApiKeys::Reload() {
  auto read = Read(path_);
  if (!read.ok()) return Annotate(read.status(), "--api-key-file");
  auto keys = std::make_shared<const Table>(*std::move(read));
  absl::MutexLock lock(&mutex_);
  keys_ = std::move(keys);
  return absl::OkStatus();
}

size_t ApiKeys::size() const {
  absl::MutexLock lock(&mutex_);
  return keys_->size();
}

StatusOr<std::string> ApiKeys::Check(std::string_view authorization, std::string_view transport) const {
  std::shared_ptr<const Table> keys;
  {
    absl::MutexLock lock(&mutex_);
    keys = keys_;
  }
  const std::string_view secret = BearerKey(authorization);
  Digest digest;
  SHA256(Bytes(secret), secret.size(), digest.data());
  // Every key is looked at, whichever fits.
  const Key* found = nullptr;
  for (const Key& key : *keys) {
    if (CRYPTO_memcmp(key.digest.data(), digest.data(), digest.size()) == 0) found = &key;
  }
  if (found != nullptr && !secret.empty()) return found->tenant;
  if (on_refused_) on_refused_(transport);
  return Status(absl::StatusCode::kUnauthenticated, secret.empty()
                                                        ? "an API key is needed: Authorization: Bearer KEY"
                                                        : "the API key is not known here");
}

std::string TenantPageKey(std::string_view tenant) {
  if (tenant.empty()) return {};
  std::array<uint8_t, 32> mac;
  unsigned size = 0;
  HMAC(EVP_sha256(), kPageKeyDomain.data(), static_cast<int>(kPageKeyDomain.size()), Bytes(tenant),
       tenant.size(), mac.data(), &size);
  return {reinterpret_cast<const char*>(mac.data()), size};
}

}  // namespace t6::server
