#include "server/auth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/escaping.h"

namespace t6::server {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// `printf %s alpha | sha256sum`, and of beta and gamma.
constexpr char kAlpha[] = "sha256:8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
constexpr char kBeta[] = "sha256:F44E64E75F3948E9F73F8DFA94721C4CE8CBB4F265C4790C702B2D41CFBF2753";
constexpr char kGamma[] = "sha256:be9d587defa1f0c09ef49eb17e206983a5f8f8289e4281860bd0ee5a19592c67";

class KeyFile {
 public:
  explicit KeyFile(const std::string& text) { Write(text); }
  ~KeyFile() { std::filesystem::remove(path); }
  void Write(const std::string& text) const { std::ofstream(path, std::ios::trunc) << text; }
  const std::string path = testing::TempDir() + "/t6d-keys-" + std::to_string(getpid());
};

std::string LoadError(const std::string& text) {
  KeyFile file(text);
  const auto keys = ApiKeys::Load(file.path);
  return keys.ok() ? "no error" : std::string(MessageOf(keys.status()));
}

TEST(ApiKeys, AKeyNamesItsTenantAndOthersAreRefused) {
  KeyFile file(fmt::format("# who may\n\nacme {}\r\n  other\t{}  \nacme {}\n", kAlpha, kBeta, kGamma));
  std::vector<std::string> refused;
  const auto keys =
      ApiKeys::Load(file.path, [&](std::string_view transport) { refused.emplace_back(transport); }).value();
  EXPECT_EQ(keys->size(), 3u);
  EXPECT_EQ(keys->Check("Bearer alpha", "http").value(), "acme");
  EXPECT_EQ(keys->Check("bearer  beta ", "grpc").value(), "other");
  EXPECT_TRUE(refused.empty());
  for (const char* wrong : {"", "Bearer", "Bearer ", "Bearer alph", "Bearer alphaa", "Bearer ALPHA", "alpha",
                            "Basic alpha", "Bearer alpha beta"}) {
    const auto tenant = keys->Check(wrong, "http");
    EXPECT_EQ(tenant.status().code(), absl::StatusCode::kUnauthenticated) << wrong;
    EXPECT_THAT(std::string(tenant.status().message()), Not(HasSubstr("alph"))) << wrong;
  }
  EXPECT_EQ(refused, std::vector<std::string>(9, "http"));
}

TEST(ApiKeys, ErrorsNameTheLineAndNeverQuoteIt) {
  const std::string good = fmt::format("acme {}\n", kAlpha);
  const std::pair<std::string, std::string> cases[] = {
      {"", "has no key"},
      {"# nothing\n", "has no key"},
      {good + "secret-key-in-clear\n", "line 2: has 1 words"},
      {good + "a b c\n", "line 2: has 3 words"},
      {"ac/me " + std::string(kAlpha), "line 1: the tenant's name"},
      {std::string(65, 'a') + " " + kAlpha, "line 1: the tenant's name"},
      {"acme secret-key-in-clear", "line 1: the second word does not begin with sha256:"},
      {"acme sha256:secret-key-in-clear", "line 1: sha256: is not followed by 64"},
      {"acme " + std::string(kAlpha) + "00", "line 1: sha256: is not followed by 64"},
      {"acme sha256:" + std::string(64, 'g'), "line 1: sha256: is not followed by 64"},
      {good + "other " + kAlpha, "line 2: the same key stands there twice"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(LoadError(text),
                AllOf(HasSubstr("--api-key-file"), HasSubstr(message), Not(HasSubstr("secret"))));
  }
  EXPECT_THAT(std::string(MessageOf(ApiKeys::Load("/nowhere").status())), HasSubstr("/nowhere"));
}

TEST(ApiKeys, AReloadReplacesTheKeysOrLeavesThem) {
  KeyFile file(fmt::format("acme {}\n", kAlpha));
  const auto keys = ApiKeys::Load(file.path).value();
  file.Write("nonsense\n");
  EXPECT_FALSE(keys->Reload().ok());
  EXPECT_TRUE(keys->Check("Bearer alpha", "http").ok());
  file.Write(fmt::format("acme {}\n", kBeta));
  EXPECT_TRUE(keys->Reload().ok());
  EXPECT_FALSE(keys->Check("Bearer alpha", "http").ok());
  EXPECT_EQ(keys->Check("Bearer beta", "http").value(), "acme");
}

TEST(ApiKeys, TenantsHavePageKeysOfTheirOwn) {
  EXPECT_EQ(TenantPageKey(""), "");
  EXPECT_EQ(TenantPageKey("acme").size(), 32u);
  EXPECT_EQ(TenantPageKey("acme"), TenantPageKey("acme"));
  EXPECT_NE(TenantPageKey("acme"), TenantPageKey("acme2"));
  // Of all versions and machines, or caches on disk lose their owner:
  // printf %s acme | openssl dgst -sha256 -hmac 't6d tenant'
  EXPECT_EQ(absl::BytesToHexString(TenantPageKey("acme")),
            "845335d92acd102b8842fbbcdebdf8f8b604393dcb7c06d66b7a72aa20619943");
}

}  // namespace
}  // namespace t6::server
