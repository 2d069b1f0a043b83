// Who may call: keys, web pages of other origins, names that the server answers to.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "server/auth.h"
#include "tests/server/http/api_fixture.h"

namespace t6::server {
namespace {

using testing::HasSubstr;

// The same API where keys are asked for, web pages of one origin may call, and metrics have their own port.
class GuardedApiTest : public ApiTest {
 protected:
  GuardedApiTest() {
    const std::string path = testing::TempDir() + "/t6d-api-keys-" + std::to_string(getpid());
    // printf %s alpha | sha256sum
    std::ofstream(path) << "acme sha256:8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8\n";
    keys_ = ApiKeys::Load(path).value();
    std::filesystem::remove(path);
    HttpConfig config = TestConfig();
    config.cors_origins = {"https://app.example"};
    Handlers handlers = TestHandlers();
    handlers.keys = keys_.get();
    guarded_ = std::make_unique<HttpApi>(handlers, admin_, config, /*with_metrics=*/false);
    Serve(guarded_.get());
  }
  ~GuardedApiTest() override { server_->Stop(absl::Now() + kPatience); }

  std::unique_ptr<ApiKeys> keys_;
  std::unique_ptr<HttpApi> guarded_;
};

TEST_F(GuardedApiTest, TheModelNeedsAKeyAndHealthDoesNot) {
  for (const std::string path : {kChatPath, kCompletionPath, "/tokenize", "/detokenize"}) {
    EXPECT_EQ(ErrorOf(401, Post(path, kHello))["code"], "invalid_api_key");
    EXPECT_EQ(Ask(Post(path, kHello, "Authorization: Bearer beta\r\n")).status, 401);
  }
  EXPECT_EQ(Ask(Request("GET", "/v1/models")).Header("WWW-Authenticate"), "Bearer");
  EXPECT_EQ(Ask(Request("GET", "/v1/models", "", "Authorization: Bearer alpha\r\n")).status, 200);
  for (const std::string path : {"/health", "/livez", "/readyz", "/version", "/"})
    EXPECT_EQ(Ask(Request("GET", path)).status, 200) << path;
  EXPECT_EQ(Ask(Request("GET", "/metrics")).status, 404);
}

TEST_F(GuardedApiTest, TheHandlerLearnsTheTenant) {
  chat_.answer = v1::ChatCompletionResponse();
  EXPECT_EQ(Ask(Post(kChatPath, kHello, "authorization: bearer alpha\r\n")).status, 200);
  EXPECT_EQ(chat_.context.tenant, "acme");
}

TEST_F(GuardedApiTest, AnAllowedOriginGetsLeaveAndAnotherDoesNot) {
  const std::string ask = "Access-Control-Request-Method: POST\r\n";
  const RawResponse yes = Ask(Request("OPTIONS", kChatPath, "", "Origin: https://app.example\r\n" + ask));
  EXPECT_EQ(yes.status, 200);
  EXPECT_EQ(yes.Header("Access-Control-Allow-Origin"), "https://app.example");
  // OpenAI's client for browsers adds x-stainless-lang and more.
  EXPECT_EQ(yes.Header("Access-Control-Allow-Headers"), "*, authorization");
  const RawResponse no = Ask(Request("OPTIONS", kChatPath, "", "Origin: https://evil.example\r\n" + ask));
  EXPECT_EQ(no.status, 405);
  EXPECT_EQ(no.Header("Access-Control-Allow-Origin"), "");
  // Or a cache might give this answer to the page that is allowed.
  EXPECT_EQ(no.Header("Vary"), "Origin");
  EXPECT_EQ(Ask(Request("GET", "/v1/models")).Header("Vary"), "Origin");
  // An error carries it too, or the page could not read why.
  const RawResponse refused = Ask(Post(kChatPath, kHello, "Origin: https://app.example\r\n"));
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.Header("Access-Control-Allow-Origin"), "https://app.example");
  EXPECT_EQ(Ask(Request("GET", "/health", "", "Origin: https://evil.example\r\n"))
                .Header("Access-Control-Allow-Origin"),
            "");
}

// ---- DNS rebinding: Request() says Host: localhost, and these add another one's name

std::string PostTo(std::string_view host, std::string_view more_headers = "") {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n{}",
      kChatPath, host, std::string_view(kHello).size(), more_headers, kHello);
}

TEST_F(ApiTest, APageWhoseNameWasMadeToMeanThisMachineIsRefused) {
  chat_.answer = v1::ChatCompletionResponse();
  const Json error = ErrorOf(403, PostTo("evil.example:8000", "Origin: http://evil.example:8000\r\n"));
  EXPECT_EQ(error["type"], "permission_error");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("evil.example:8000"));
  for (const char* host : {"localhost:8000", "LOCALHOST", "127.0.0.1:8000", "[::1]:8000", "docs.localhost"})
    EXPECT_EQ(Ask(PostTo(host, "Origin: http://localhost:8000\r\n")).status, 200) << host;
  // No browser, but a balancer on this machine and its client.
  EXPECT_EQ(Ask(PostTo("llm.example")).status, 200);
}

TEST_F(ApiTest, WithNamesAllowedNoOtherIsAnsweredTo) {
  chat_.answer = v1::ChatCompletionResponse();
  HttpConfig config = TestConfig();
  config.allowed_hosts = {"llm.example"};
  HttpApi named(TestHandlers(), admin_, config);
  Serve(&named);
  EXPECT_EQ(Ask(PostTo("LLM.example.:443")).status, 200);
  EXPECT_EQ(Ask(PostTo("localhost")).status, 200);
  EXPECT_EQ(Ask(PostTo("evil.example")).status, 403);
  EXPECT_EQ(Ask("GET /readyz HTTP/1.1\r\nHost: 10.0.0.7\r\n\r\n").status, 200) << "probes name an address";
  Serve(&api_);
}

TEST_F(ApiTest, WithoutKeysAnyAuthorizationIsAccepted) {
  EXPECT_EQ(Ask(Request("GET", "/v1/models", "", "Authorization: Bearer whatever\r\n")).status, 200);
  EXPECT_EQ(Ask(Request("OPTIONS", kChatPath, "",
                        "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n"))
                .status,
            405);
}

}  // namespace
}  // namespace t6::server
