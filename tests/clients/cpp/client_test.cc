#include "t6client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "tests/clients/cpp/scripted_server.h"

namespace t6::client {
namespace {

using grpc::StatusCode;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;

v1::ChatCompletionRequest Hello() {
  v1::ChatCompletionRequest request;
  AddMessage(request, "user", "Hello");
  return request;
}

CallOptions Within(milliseconds timeout) {
  CallOptions options;
  options.timeout = timeout;
  return options;
}

std::vector<std::string> Read(ChatStream& stream) {
  std::vector<std::string> texts;
  for (const v1::ChatCompletionChunk& chunk : stream) texts.push_back(TextOf(chunk));
  return texts;
}

static_assert(std::input_iterator<ChatStream::iterator>);

TEST(ClientTest, TheServersHintIsRespected) {
  for (const StatusCode code : {StatusCode::UNAVAILABLE, StatusCode::RESOURCE_EXHAUSTED}) {
    ScriptedServer server({{code, "400"}});
    const auto answer = Client(server.target()).Chat(Hello());
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(TextOf(*answer), "yes");
    const auto seen = server.seen();
    ASSERT_EQ(seen.size(), 2u);
    EXPECT_GE(seen[1].at - seen[0].at, milliseconds(390));
  }
}

TEST(ClientTest, AStreamIsRetriedBeforeItsFirstToken) {
  ScriptedServer server({{StatusCode::RESOURCE_EXHAUSTED, "10"}});
  const Client client(server.target());
  ChatStream stream = client.StreamChat(Hello());
  EXPECT_THAT(Read(stream), ElementsAre("yes", "yes"));
  EXPECT_TRUE(stream.status().ok()) << stream.status();
  EXPECT_EQ(server.seen().size(), 2u);
}

TEST(ClientTest, NeverAfterAToken) {
  ScriptedServer server({{StatusCode::UNAVAILABLE, "10", 1}});
  const Client client(server.target());
  ChatStream stream = client.StreamChat(Hello());
  EXPECT_THAT(Read(stream), ElementsAre("yes"));
  EXPECT_EQ(stream.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.seen().size(), 1u);
}

TEST(ClientTest, ANegativeOrUnreadableHintForbids) {
  for (const char* pushback : {"-1", "soon", "99999999999999999999"}) {
    ScriptedServer server({{StatusCode::RESOURCE_EXHAUSTED, pushback}});
    EXPECT_EQ(Client(server.target()).Chat(Hello()).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(server.seen().size(), 1u) << pushback;
  }
}

TEST(ClientTest, AttemptsEndAndTheErrorTellsAll) {
  ScriptedServer server(std::deque<Action>(9, {StatusCode::RESOURCE_EXHAUSTED, "20"}));
  const absl::Status status = Client(server.target()).Chat(Hello()).status();
  EXPECT_EQ(server.seen().size(), 2u);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(status.message()), "as the script says");
  EXPECT_EQ(ErrorParam(status), "temperature");
  EXPECT_EQ(RequestId(status), "req-1");
  EXPECT_EQ(RetryAfter(status), milliseconds(20));
  EXPECT_EQ(RetryAfter(absl::UnavailableError("none")), std::nullopt);
}

TEST(ClientTest, RetriesMayBeTurnedOffAndOtherErrorsAreFinal) {
  ScriptedServer server({{StatusCode::UNAVAILABLE, "1"}, {StatusCode::INTERNAL, "1"}});
  ClientOptions options;
  options.retry = false;
  EXPECT_EQ(Client(server.target(), options).Chat(Hello()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Client(server.target()).Chat(Hello()).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(server.seen().size(), 2u);
}

TEST(ClientTest, TheDeadlineHoldsAllAttemptsTogether) {
  ScriptedServer server({{StatusCode::UNAVAILABLE, "3600000"}, {.endless = true}});
  const Client client(server.target());
  EXPECT_EQ(client.Chat(Hello(), Within(milliseconds(300))).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  ChatStream stream = client.StreamChat(Hello(), Within(milliseconds(300)));
  EXPECT_THAT(Read(stream), ElementsAre());
  EXPECT_EQ(stream.status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(ClientTest, AStopTokenCancelsFromAnotherThread) {
  for (const bool unary : {true, false}) {
    ScriptedServer server({{.chunks = 1, .endless = true}});
    const Client client(server.target());
    std::stop_source source;
    CallOptions options;
    options.stop = source.get_token();
    std::jthread stopper([&source, &server] {
      while (server.seen().empty()) std::this_thread::yield();
      source.request_stop();
    });
    absl::Status status;
    if (unary) {
      status = client.Chat(Hello(), options).status();
    } else {
      ChatStream stream = client.StreamChat(Hello(), options);
      Read(stream);
      status = stream.status();
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
    EXPECT_TRUE(server.WaitForCancelled());
  }
}

TEST(ClientTest, AStoppedTokenNeverCalls) {
  ScriptedServer server;
  std::stop_source source;
  source.request_stop();
  CallOptions options;
  options.stop = source.get_token();
  EXPECT_EQ(Client(server.target()).Chat(Hello(), options).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(server.seen().size(), 0u);
}

TEST(ClientTest, AStreamThatIsDroppedOrReplacedIsCancelled) {
  for (const bool replaced : {false, true}) {
    ScriptedServer server({{.chunks = 1, .endless = true}});
    const Client client(server.target());
    ChatStream stream = client.StreamChat(Hello());
    v1::ChatCompletionChunk chunk;
    EXPECT_TRUE(stream.Next(chunk));
    if (replaced) {
      stream = client.StreamChat(Hello());
    } else {
      ChatStream moved = std::move(stream);
    }
    EXPECT_TRUE(server.WaitForCancelled());
    EXPECT_EQ(stream.Next(chunk), replaced);
  }
}

TEST(ClientTest, ACallbackTakesPiecesUntilItHasEnough) {
  ScriptedServer server({{}, {.chunks = 1, .endless = true}});
  const Client client(server.target());
  std::string text;
  const auto take = [&text](const v1::ChatCompletionChunk& chunk) { return text += TextOf(chunk), true; };
  EXPECT_TRUE(client.StreamChat(Hello(), take).ok());
  EXPECT_EQ(text, "yesyes");
  EXPECT_TRUE(client.StreamChat(Hello(), [](const auto&) { return false; }).ok());
  EXPECT_TRUE(server.WaitForCancelled());
}

TEST(ClientTest, MetadataIsSentAndChecked) {
  ScriptedServer server;
  ClientOptions options;
  options.api_key = "secret";
  options.affinity = "archive";
  const Client client(server.target(), options);
  CallOptions call;
  call.affinity = "museum";
  call.request_id = "r-1";
  ASSERT_TRUE(client.Chat(Hello(), call).ok());
  ASSERT_TRUE(client.Chat(Hello()).ok());
  auto seen = server.seen();
  EXPECT_EQ(seen[0].metadata["authorization"], "Bearer secret");
  EXPECT_EQ(seen[0].metadata["x-t6-context"], "museum");
  EXPECT_EQ(seen[0].metadata["x-request-id"], "r-1");
  EXPECT_THAT(seen[0].metadata["user-agent"], HasSubstr("t6client-cpp/"));
  EXPECT_EQ(seen[1].metadata["x-t6-context"], "archive");
  call.affinity = "two\nlines";
  const absl::Status bad = client.Chat(Hello(), call).status();
  EXPECT_EQ(bad.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.message()), HasSubstr("affinity"));
  ChatStream stream = client.StreamChat(Hello(), call);
  EXPECT_THAT(Read(stream), ElementsAre());
  EXPECT_EQ(stream.status(), bad);
  EXPECT_EQ(server.seen().size(), 2u);
}

TEST(ClientTest, NobodyThere) {
  const Client client("127.0.0.1:1");
  EXPECT_EQ(client.Chat(Hello()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(client.WaitForConnected(milliseconds(50)));
  CallOptions patient = Within(milliseconds(200));
  patient.wait_for_ready = true;
  EXPECT_EQ(client.Chat(Hello(), patient).status().code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace t6::client
