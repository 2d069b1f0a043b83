// Every route over a real socket, with handlers that do as told.
#include "server/http/api.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "server/auth.h"
#include "server/error_map.h"
#include "server/http/json_value.h"
#include "tests/server/http/api_fixture.h"

namespace t6::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

constexpr char kChatPath[] = "/v1/chat/completions";
constexpr char kCompletionPath[] = "/v1/completions";
constexpr char kHello[] = R"({"messages": [{"role": "user", "content": "hi"}]})";
constexpr char kHelloStream[] = R"({"messages": [{"role": "user", "content": "hi"}], "stream": true})";

bool Happens(const absl::Notification& event) {
  return event.WaitForNotificationWithTimeout(absl::Seconds(10));
}

class ApiTest : public ApiFixture {
 protected:
  // The error object of the answer, which must have this status.
  Json ErrorOf(int status, const std::string& bytes) {
    const RawResponse response = Ask(bytes);
    EXPECT_EQ(response.status, status) << response.body;
    EXPECT_EQ(response.Header("Content-Type"), "application/json");
    const Json json = Json::parse(response.body, nullptr, false);
    if (!json.is_object() || !json.contains("error")) {
      ADD_FAILURE() << response.body;
      return Json::object();
    }
    const Json& error = json["error"];
    EXPECT_TRUE(error.contains("message") && error.contains("type") && error.contains("param") &&
                error.contains("code"));
    return error;
  }
};

TEST_F(ApiTest, AdminRoutes) {
  EXPECT_EQ(Ask(Request("GET", "/health")).status, 200);
  EXPECT_EQ(Ask(Request("GET", "/livez")).status, 200);
  EXPECT_EQ(Ask(Request("GET", "/readyz")).status, 200);
  EXPECT_EQ(Json::parse(Ask(Request("GET", "/version")).body), Json({{"version", "1.2.3"}}));
  const RawResponse metrics = Ask(Request("GET", "/metrics"));
  EXPECT_THAT(metrics.Header("Content-Type"), HasSubstr("version=0.0.4"));
  EXPECT_EQ(metrics.body, "vllm:num_requests_running 0\n");
  const RawResponse head = Ask(Request("HEAD", "/metrics"), true);
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.Header("Content-Length"), std::to_string(metrics.body.size()));
}

TEST_F(ApiTest, HealthFollowsTheDaemonsState) {
  struct Expected {
    ServingState state;
    int health, live, ready, models;
  };
  for (const Expected& e : {Expected{ServingState::kStarting, 503, 200, 503, 503},
                            Expected{ServingState::kServing, 200, 200, 200, 200},
                            Expected{ServingState::kGrace, 200, 200, 503, 200},
                            Expected{ServingState::kDraining, 503, 200, 503, 503},
                            Expected{ServingState::kFailed, 503, 503, 503, 503}}) {
    admin_.now = e.state;
    EXPECT_EQ(Ask(Request("GET", "/health")).status, e.health) << static_cast<int>(e.state);
    EXPECT_EQ(Ask(Request("GET", "/livez")).status, e.live) << static_cast<int>(e.state);
    EXPECT_EQ(Ask(Request("GET", "/readyz")).status, e.ready) << static_cast<int>(e.state);
    EXPECT_EQ(Ask(Request("GET", "/v1/models")).status, e.models) << static_cast<int>(e.state);
    EXPECT_EQ(Ask(Request("GET", "/metrics")).status, 200);
  }
}

TEST_F(ApiTest, AnswersCarryALoadReportWhenAskedForOne) {
  const auto load = [this](const std::string& format) {
    return Ask(fmt::format("GET /v1/models HTTP/1.1\r\nHost: x\r\nendpoint-load-metrics-format: {}\r\n\r\n",
                           format))
        .Header("endpoint-load-metrics");
  };
  EXPECT_EQ(
      load("TEXT"),
      "TEXT application_utilization=0.25, rps_fractional=12.5, eps=0, named_metrics.num_requests_waiting=3");
  EXPECT_EQ(load("json"),
            "JSON {\"application_utilization\":0.25,\"rps_fractional\":12.5,\"eps\":0.0,"
            "\"named_metrics\":{\"num_requests_waiting\":3.0}}");
  EXPECT_EQ(load("BIN"), "");
  EXPECT_EQ(Ask(Request("GET", "/v1/models")).Header("endpoint-load-metrics"), "");
}

TEST_F(ApiTest, RefusesWorkWhileStartingOrDrainingAndClosesTheConnection) {
  for (const ServingState state : {ServingState::kStarting, ServingState::kDraining}) {
    admin_.now = state;
    for (const std::string path : {kChatPath, kCompletionPath, "/tokenize", "/detokenize"}) {
      const RawResponse response = Ask(Post(path, kHello));
      EXPECT_EQ(response.status, 503);
      EXPECT_EQ(response.Header("Connection"), "close");
      EXPECT_EQ(response.Header("Retry-After"), "1");
      EXPECT_THAT(response.body, HasSubstr("service_unavailable"));
    }
  }
  EXPECT_FALSE(chat_.asked.HasBeenNotified());
}

TEST_F(ApiTest, SaysWhatAPathTakes) {
  RawResponse response = Ask(Request("GET", kChatPath));
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.Header("Allow"), "POST");
  response = Ask(Post("/v1/models", "{}"));
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.Header("Allow"), "GET, HEAD");
  EXPECT_EQ(Ask(Request("OPTIONS", "/tokenize")).status, 405);
  EXPECT_EQ(Ask(Request("DELETE", "/v1/models/org/m1")).status, 405);
  EXPECT_THAT(ErrorOf(404, Request("GET", "/v1/nothing"))["message"], HasSubstr("/v1/nothing"));
  ErrorOf(404, Request("OPTIONS", "*"));
}

TEST_F(ApiTest, WantsJson) {
  EXPECT_THAT(ErrorOf(415, Request("POST", kChatPath, kHello))["message"], HasSubstr("got none"));
  EXPECT_THAT(ErrorOf(415, Request("POST", kChatPath, kHello, "Content-Type: text/plain\r\n"))["message"],
              HasSubstr("text/plain"));
  ErrorOf(415, Post("/tokenize", "{}", "Content-Encoding: gzip\r\n"));
  const auto with_charset =
      Request("POST", "/tokenize", R"({"prompt": "a"})", "Content-Type: Application/JSON; charset=utf-8\r\n");
  EXPECT_EQ(Ask(with_charset).status, 200);
}

TEST_F(ApiTest, ModelsAndTokenizer) {
  const Json list = Json::parse(Ask(Request("GET", "/v1/models")).body);
  EXPECT_EQ(list["object"], "list");
  EXPECT_EQ(list["data"][0]["id"], "org/m1");
  EXPECT_EQ(list["data"][0]["object"], "model");
  EXPECT_EQ(list["data"][0]["max_model_len"], 1024);
  EXPECT_EQ(Json::parse(Ask(Request("GET", "/v1/models/org/m1")).body), list["data"][0]);
  EXPECT_EQ(Json::parse(Ask(Request("GET", "/v1/models/org%2Fm1")).body), list["data"][0]);
  EXPECT_THAT(ErrorOf(404, Request("GET", "/v1/models/m2"))["message"], HasSubstr("m2"));

  EXPECT_EQ(Json::parse(Ask(Post("/tokenize", R"({"prompt": "ab"})")).body),
            Json::parse(R"({"tokens": [97, 98], "count": 2, "max_model_len": 1024})"));
  EXPECT_EQ(Json::parse(Ask(Post("/detokenize", R"({"tokens": [97, 98]})")).body), Json({{"prompt", "ab"}}));
  EXPECT_EQ(ErrorOf(400, Post("/detokenize", "{}"))["param"], "tokens");
}

TEST_F(ApiTest, AnswersAChat) {
  v1::ChatCompletionResponse answer;
  answer.set_id("chatcmpl-1");
  answer.add_choices()->mutable_message()->set_content("hello");
  chat_.answer = answer;
  const RawResponse response =
      Ask(Post(kChatPath, kHello, "X-Request-Id: mine\r\nAuthorization: Bearer any\r\n"));
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(response.Header("x-request-id"), "mine");
  EXPECT_EQ(Json::parse(response.body)["choices"][0]["message"]["content"], "hello");
  EXPECT_EQ(chat_.context.request_id, "mine");
  EXPECT_EQ(chat_.context.transport, "http");
  EXPECT_EQ(chat_.request.messages(0).content(), "hi");
}

TEST_F(ApiTest, HandlersErrorsBecomeHttpErrors) {
  completion_.refuse = BadField("temperature", "\"temperature\" = -1 must not be below 0");
  const std::string ask = Post(kCompletionPath, R"({"prompt": "a", "temperature": -1})");
  Json error = ErrorOf(400, ask);
  EXPECT_EQ(error["param"], "temperature");
  EXPECT_EQ(error["type"], "invalid_request_error");
  EXPECT_THAT(error["message"], HasSubstr("-1"));

  completion_.refuse = ResourceExhausted("1024 requests are waiting, which is the bound");
  EXPECT_EQ(ErrorOf(429, ask)["type"], "rate_limit_error");
  EXPECT_EQ(Ask(ask).Header("Retry-After"), "1");
  EXPECT_NE(Ask(ask).Header("Connection"), "close");

  completion_.refuse = absl::OkStatus();
  completion_.answer = Internal("broken");
  EXPECT_EQ(ErrorOf(500, ask)["message"], "broken");
}

TEST_F(ApiTest, BadBodiesNeverReachAHandler) {
  EXPECT_THAT(ErrorOf(400, Post(kChatPath, "{\"messages\": "))["message"], HasSubstr("not valid JSON"));
  EXPECT_EQ(ErrorOf(400, Post(kChatPath, "{}"))["param"], "messages");
  const Json unknown = ErrorOf(400, Post(kChatPath, R"({"messages": [], "tempeature": 1})"));
  EXPECT_TRUE(unknown["param"] == "messages" || unknown["param"] == "tempeature");
  std::string deep = R"({"messages": )" + std::string(100, '[') + std::string(100, ']') + "}";
  EXPECT_THAT(ErrorOf(400, Post(kChatPath, deep))["message"], HasSubstr("64 levels"));
  EXPECT_FALSE(chat_.asked.HasBeenNotified());
}

TEST_F(ApiTest, ALeavingClientCancelsAUnaryCallAndAStream) {
  RawClient unary(server_->port());
  unary.Send(Post(kCompletionPath, R"({"prompt": "a"})"));
  ASSERT_TRUE(Happens(completion_.asked));
  unary.Close();
  EXPECT_TRUE(Happens(completion_.unary_destroyed));

  RawClient stream(server_->port());
  stream.Send(Post(kChatPath, kHelloStream));
  ASSERT_TRUE(Happens(chat_.asked));
  stream.Close();
  EXPECT_TRUE(Happens(chat_.control->destroyed));
}

// ---- streams

v1::ChatCompletionChunk ChatText(const std::string& text, bool first = false) {
  v1::ChatCompletionChunk chunk;
  chunk.set_id("chatcmpl-1");
  chunk.mutable_choice()->mutable_message()->set_content(text);
  if (first) chunk.mutable_choice()->mutable_message()->set_role("assistant");
  return chunk;
}

TEST_F(ApiTest, StreamsAChatUntilDone) {
  chat_.control->Give(ChatText("he", true));
  chat_.control->Give(ChatText("llo"));
  chat_.control->Give(std::nullopt);
  RawClient client(server_->port());
  client.Send(Post(kChatPath, kHelloStream));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(response->Header("Content-Type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(response->Header("Cache-Control"), "no-cache");
  std::vector<std::string> texts;
  std::string_view rest = response->body;
  while (!rest.empty()) {
    const size_t end = rest.find("\n\n");
    ASSERT_NE(end, std::string_view::npos);
    ASSERT_TRUE(rest.starts_with("data: "));
    const std::string_view data = rest.substr(6, end - 6);
    rest.remove_prefix(end + 2);
    if (data == "[DONE]") {
      EXPECT_TRUE(rest.empty());
      texts.emplace_back(data);
    } else {
      texts.push_back(Json::parse(data)["choices"][0]["delta"].dump());
    }
  }
  EXPECT_THAT(texts, ElementsAre(R"({"content":"","role":"assistant"})", R"({"content":"he"})",
                                 R"({"content":"llo"})", "[DONE]"));
  EXPECT_TRUE(Happens(chat_.control->destroyed));
  client.Send(Request("GET", "/version"));
  EXPECT_EQ(client.Read()->status, 200) << "the connection goes on";
}

TEST_F(ApiTest, SendsEachPieceAsItComes) {
  RawClient client(server_->port());
  client.Send(Post(kChatPath, kHelloStream));
  ASSERT_TRUE(Happens(chat_.asked));
  chat_.control->Give(ChatText("one"));
  EXPECT_THAT(client.ReadUntil("\n\n"), HasSubstr("one"));
  chat_.control->Give(ChatText("two"));
  EXPECT_THAT(client.ReadUntil("\n\n"), HasSubstr("two"));
  chat_.control->Give(std::nullopt);
  EXPECT_THAT(client.ReadUntil("0\r\n\r\n"), HasSubstr("data: [DONE]\n\n"));
}

TEST_F(ApiTest, AnErrorBeforeTheFirstTokenIsAnHttpError) {
  chat_.control->Give(Status(absl::StatusCode::kResourceExhausted, "queue full"));
  const Json error = ErrorOf(429, Post(kChatPath, kHelloStream));
  EXPECT_EQ(error["message"], "queue full");
}

TEST_F(ApiTest, AnErrorAfterItIsAnEventWithoutDone) {
  chat_.control->Give(ChatText("one"));
  chat_.control->Give(Status(absl::StatusCode::kInternal, "lost"));
  RawClient client(server_->port());
  client.Send(Post(kChatPath, kHelloStream));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 200);
  const size_t last = response->body.rfind("data: ");
  EXPECT_EQ(Json::parse(response->body.substr(last + 6))["error"]["message"], "lost");
  EXPECT_THAT(response->body, Not(HasSubstr("[DONE]")));
  EXPECT_TRUE(client.IsClosedByServer());
}

TEST_F(ApiTest, UsageComesOnlyWhenAskedFor) {
  v1::CompletionChunk text, usage;
  text.mutable_choice()->set_text("x");
  usage.mutable_usage()->set_prompt_tokens(7);
  for (const bool wanted : {false, true}) {
    completion_.control = std::make_shared<FakeCompletion::Control>(&executor_);
    completion_.control->Give(text);
    completion_.control->Give(usage);
    completion_.control->Give(std::nullopt);
    const RawResponse response = Ask(Post(kCompletionPath, fmt::format(R"({{"prompt": "a", "stream": true,
            "stream_options": {{"include_usage": {}}}}})",
                                                                       wanted)));
    EXPECT_EQ(response.body.find("\"prompt_tokens\":7") != std::string::npos, wanted) << response.body;
    EXPECT_THAT(response.body, testing::EndsWith("data: [DONE]\n\n"));
  }
}

TEST_F(ApiTest, SurvivesRandomBodiesOverTheWire) {
  chat_.refuse = ResourceExhausted("not today");
  std::mt19937 random(11);
  RawClient client(server_->port());
  for (int i = 0; i < 300; ++i) {
    std::string body = kHello;
    for (int k = 0; k < 3; ++k) body[random() % body.size()] = static_cast<char>(random());
    ASSERT_TRUE(client.Send(Post(kChatPath, body)));
    const auto response = client.Read();
    ASSERT_TRUE(response.has_value());
    EXPECT_TRUE(response->status == 400 || response->status == 429) << response->status;
    EXPECT_FALSE(Json::parse(response->body, nullptr, false).is_discarded()) << response->body;
  }
}

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
  ~GuardedApiTest() override { server_->Stop(absl::Now() + absl::Seconds(10)); }

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

// ---- work that takes long

TEST_F(ApiTest, ALongTokenizeHoldsUpNeitherStreamsNorStarts) {
  RawClient stream(server_->port());
  stream.Send(Post(kChatPath, kHelloStream));
  ASSERT_TRUE(Happens(chat_.asked));
  absl::Notification released;
  info_.while_tokenizing = [&] { released.WaitForNotification(); };
  RawClient tokenizes(server_->port()), waits(server_->port());
  tokenizes.Send(Post("/tokenize", R"({"prompt": "abc"})"));
  waits.Send(Post("/tokenize", R"({"prompt": "abcd"})"));
  ASSERT_TRUE(Happens(info_.tokenizes));
  chat_.control->Give(ChatText("one"));
  EXPECT_THAT(stream.ReadUntil("\n\n"), HasSubstr("one"));
  completion_.answer = v1::CompletionResponse();
  EXPECT_EQ(Ask(Post(kCompletionPath, R"({"prompt": "a"})")).status, 200);
  EXPECT_EQ(Ask(Request("GET", "/v1/models")).status, 200);
  released.Notify();
  EXPECT_EQ(Json::parse(tokenizes.Read()->body)["count"], 3);
  EXPECT_EQ(Json::parse(waits.Read()->body)["count"], 4);
}

TEST_F(ApiTest, WhoLeavesBeforeItsTurnIsNotWorkedFor) {
  absl::Notification released;
  info_.while_tokenizing = [&] { released.WaitForNotification(); };
  RawClient tokenizes(server_->port()), leaves(server_->port());
  tokenizes.Send(Post("/tokenize", R"({"prompt": "abc"})"));
  ASSERT_TRUE(Happens(info_.tokenizes));
  leaves.Send(Post("/tokenize", R"({"prompt": "abcd"})"));
  // Until it has been read, or the close could overtake it.
  while (server_->requests_in_flight() < 2) std::this_thread::yield();
  leaves.Close();
  while (server_->requests_in_flight() > 1) std::this_thread::yield();
  released.Notify();
  EXPECT_TRUE(tokenizes.Read().has_value());
  EXPECT_EQ(Ask(Post("/tokenize", R"({"prompt": "abc"})")).status, 200) << "which was behind it in the line";
  EXPECT_EQ(info_.n_tokenized, 2);
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
