// The HTTP side of the load against servers that say odd things: what counts as answered, as which failure,
// and when a connection is used again.
#include "clients/cli/bench/http_target.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <thread>

namespace t6::cli {
namespace {

namespace net = boost::asio;
using net::ip::tcp;
using testing::HasSubstr;

std::string Sse(const std::string& events, const std::string& headers = "") {
  return fmt::format("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n{}\r\n{}",
                     events.size(), headers, events);
}

constexpr char kAnswer[] =
    "data: {\"choices\": [{\"delta\": {\"role\": \"assistant\", \"content\": \"\"}}]}\n\n"
    "data: {\"choices\": [{\"delta\": {\"content\": \"six\"}}]}\n\n"
    "data: {\"choices\": [{\"delta\": {\"content\": \" euros\"}}]}\n\n"
    "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 30, \"completion_tokens\": 2, "
    "\"prompt_tokens_details\": {\"cached_tokens\": 20}}}\n\n";
const std::string kGood = kAnswer + std::string("data: [DONE]\n\n");

// Each inner list is one connection: after each request it says the next text, and after the last it closes.
class ScriptedServer {
 public:
  using Script = std::vector<std::vector<std::string>>;
  // `requests`: what was read, complete when the server is gone.
  explicit ScriptedServer(Script script, std::vector<std::string>* requests = nullptr)
      : requests_(requests),
        acceptor_(io_, tcp::endpoint(net::ip::address_v4::loopback(), 0)),
        thread_([this, script = std::move(script)] { Serve(script); }) {}
  ~ScriptedServer() { thread_.join(); }
  HttpAddress address() const { return {"127.0.0.1", std::to_string(acceptor_.local_endpoint().port()), ""}; }

 private:
  void Serve(const Script& script) {
    for (const auto& connection : script) {
      tcp::socket socket = acceptor_.accept();
      for (const std::string& answer : connection) {
        boost::system::error_code error;
        std::string request;
        net::read_until(socket, net::dynamic_buffer(request), "\"stream_options\":{\"include_usage\":true}}",
                        error);
        if (error) break;
        if (requests_ != nullptr) requests_->push_back(request);
        net::write(socket, net::buffer(answer), error);
      }
    }
  }
  std::vector<std::string>* const requests_;
  net::io_context io_;
  tcp::acceptor acceptor_;
  std::thread thread_;
};

// Asks `n` times, one after the other.
std::vector<Sample> Ask(const HttpAddress& address, int n, BenchRequestOptions options = {}) {
  net::io_context io;
  options.model = "m";
  const auto target = MakeHttpTarget(io, address, options);
  EXPECT_EQ(target->Connect(options.model), "");
  const BenchPrompt prompt = DocumentPrompts("I", "d", 0).Ask("q");
  std::vector<Sample> samples;
  for (int i = 0; i < n; ++i) {
    target->Send(prompt, BenchClock::now(), [&](Sample sample) { samples.push_back(std::move(sample)); });
    io.restart();
    io.run();
  }
  return samples;
}

Sample AskOnce(const std::string& answer) {
  ScriptedServer server({{answer}});
  return Ask(server.address(), 1).at(0);
}

TEST(HttpTargetTest, AnAnswerWithItsUsageAndReplica) {
  const Sample sample = AskOnce(Sse(kGood, "x-t6-replica: t6d-2\r\n"));
  EXPECT_EQ(sample.error, "");
  EXPECT_TRUE(sample.has_text);
  EXPECT_EQ(sample.gaps.size(), 1);
  EXPECT_EQ(sample.prompt_tokens, 30);
  EXPECT_EQ(sample.cached_tokens, 20);
  EXPECT_EQ(sample.completion_tokens, 2);
  EXPECT_EQ(sample.replica, "t6d-2");
}

TEST(HttpTargetTest, SendsTheKeyAndTheContextAndKeepsItsConnection) {
  std::vector<std::string> requests;
  {
    ScriptedServer server({{Sse(kGood), Sse(kGood), Sse(kGood)}}, &requests);
    BenchRequestOptions options;
    options.api_key = "secret";
    options.affinity = true;
    for (const Sample& sample : Ask(server.address(), 3, options)) EXPECT_EQ(sample.error, "");
  }
  ASSERT_EQ(requests.size(), 3);
  EXPECT_THAT(requests[2], HasSubstr("\r\nAuthorization: Bearer secret\r\n"));
  EXPECT_THAT(requests[2], HasSubstr("\r\nx-t6-context: " + ContextKey("I\n\nd") + "\r\n"));
  EXPECT_THAT(requests[2], HasSubstr("{\"role\":\"system\",\"content\":\"I\\n\\nd\"}"));
}

TEST(HttpTargetTest, AKeptConnectionThatTheServerClosedIsReplacedUnseen) {
  ScriptedServer server({{Sse(kGood)}, {Sse(kGood)}, {Sse(kGood)}});
  for (const Sample& sample : Ask(server.address(), 3)) EXPECT_EQ(sample.error, "") << sample.message;
}

TEST(HttpTargetTest, AFreshConnectionThatIsClosedWithoutAnAnswerIsAFailure) {
  EXPECT_EQ(AskOnce("").error, "connection lost");
}

TEST(HttpTargetTest, Refusals) {
  const std::string body = R"({"error": {"message": "too many", "type": "rate_limit_error"}})";
  const Sample sample =
      AskOnce(fmt::format("HTTP/1.1 429 Too Many\r\nContent-Length: {}\r\n\r\n{}", body.size(), body));
  EXPECT_EQ(sample.error, "429");
  EXPECT_EQ(sample.message, "too many");
  EXPECT_FALSE(sample.has_text);
  const Sample page = AskOnce("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>");
  EXPECT_EQ(page.error, "502");
  EXPECT_EQ(page.message, "<html>");
  const Sample cut = AskOnce("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 100\r\n\r\nno");
  EXPECT_EQ(cut.error, "503");
  EXPECT_EQ(cut.message, "no");
}

TEST(HttpTargetTest, AnErrorInTheMiddleOfAStream) {
  const Sample sample = AskOnce(Sse(
      std::string(kAnswer) + "data: {\"error\": {\"message\": \"gone\", \"type\": \"server_error\"}}\n\n"));
  EXPECT_EQ(sample.error, "server_error");
  EXPECT_EQ(sample.message, "gone");
  EXPECT_TRUE(sample.has_text);
}

TEST(HttpTargetTest, StreamsThatEndTooSoon) {
  EXPECT_EQ(AskOnce(Sse(kAnswer)).error, "incomplete");
  const Sample cut = AskOnce("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + kGood);
  EXPECT_EQ(cut.error, "connection lost");
  EXPECT_TRUE(cut.has_text);
}

TEST(HttpTargetTest, NonsenseIsNoCrash) {
  for (const char* events :
       {"data: nonsense\n\n", "data: []\n\n", "data: {\"choices\": 3}\n\n", "data: {\"choices\": [3]}\n\n",
        "data: {\"choices\": [{\"delta\": [1]}]}\n\n",
        "data: {\"usage\": {\"prompt_tokens\": \"x\", \"prompt_tokens_details\": null}}\n\n",
        "data: {\"error\": 7}\n\n", ""})
    EXPECT_NE(AskOnce(Sse(events)).error, "") << events;
  EXPECT_EQ(AskOnce("SMTP hello\r\n\r\n").error, "connection lost");
}

TEST(HttpTargetTest, NobodyThere) {
  net::io_context io;
  const HttpAddress address{"127.0.0.1", "1", ""};
  EXPECT_EQ(Ask(address, 1).at(0).error, "connection refused");
  std::string model;
  EXPECT_THAT(MakeHttpTarget(io, address, {})->Connect(model), HasSubstr("no server answers"));
}

}  // namespace
}  // namespace t6::cli
