// Every route over a real socket, with handlers that do as told.
#include "server/http/api.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "server/error_map.h"
#include "server/http/json_value.h"
#include "tests/server/http/api_fixture.h"

namespace t6::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

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

TEST_F(ApiTest, MoreThanMayWaitForTheTokenizerIsRefused) {
  absl::Notification released;
  info_.while_tokenizing = [&] { released.WaitForNotification(); };
  RawClient tokenizes(server_->port()), waits(server_->port()), waits_too(server_->port());
  const std::string post = Post("/tokenize", R"({"prompt": "abc"})");
  tokenizes.Send(post);
  ASSERT_TRUE(Happens(info_.tokenizes));
  waits.Send(post);
  waits_too.Send(post);
  while (texts_.waiting() < 2) std::this_thread::yield();
  EXPECT_THAT(ErrorOf(429, post)["message"].get<std::string>(), HasSubstr("2 requests wait"));
  EXPECT_EQ(Ask(post).Header("Retry-After"), "1");
  released.Notify();
  for (RawClient* client : {&tokenizes, &waits, &waits_too}) EXPECT_EQ(client->Read()->status, 200);
  EXPECT_EQ(Ask(post).status, 200) << "there is room again";
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

}  // namespace
}  // namespace t6::server
