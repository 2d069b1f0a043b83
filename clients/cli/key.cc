// t6 key: makes an API key and the line by which a server knows it (t6d --api-key-file).
#include <fmt/format.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "clients/cli/commands.h"

namespace t6::cli {
namespace {

// 256 random bits: too many to try, which is why a plain hash is enough on the server's side.
constexpr size_t kKeyBytes = 32;

template <size_t n>
std::string Hex(const std::array<unsigned char, n>& bytes) {
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

}  // namespace

ExitCode RunKey(const Options& options) {
  std::array<unsigned char, kKeyBytes> random;
  if (RAND_bytes(random.data(), random.size()) != 1) {
    fmt::print(stderr, "t6: the system gives no random bytes\n");
    return kFailed;
  }
  const std::string key = "t6-" + Hex(random);
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  const std::string& tenant = options.arguments[0];
  const std::string line = fmt::format("{} sha256:{}", tenant, Hex(digest));
  if (options.json) {
    const nlohmann::ordered_json json = {{"tenant", tenant}, {"key", key}, {"line", line}};
    fmt::print("{}\n", json.dump());
    return kDone;
  }
  fmt::print("{}\n", line);
  std::fflush(stdout);
  fmt::print(stderr, "The key, shown only now: {}\n", key);
  return kDone;
}

}  // namespace t6::cli
