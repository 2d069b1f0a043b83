// The transport alone: bounds, deadlines, order, disconnects. The application here is a fake.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <boost/asio/post.hpp>
#include <random>

#include "tests/server/http/http_fixture.h"

namespace t6::server {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_F(HttpServerTest, AnswersManyRequestsOnOneConnection) {
  RawClient client(Start());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(client.Send(Request("POST", "/a?b=c", fmt::format("body{}", i))));
    const auto response = client.Read();
    ASSERT_TRUE(response.has_value());
    EXPECT_EQ(response->status, 200);
    EXPECT_EQ(response->body, fmt::format("POST /a body{}", i));
    EXPECT_EQ(response->Header("Server"), "t6d");
    EXPECT_THAT(response->Header("Date"), HasSubstr("GMT"));
  }
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrderEvenWhenTheFirstTakesLong) {
  absl::Notification first_arrived;
  HttpApp::Reply first_reply;
  boost::asio::any_io_executor first_executor;
  app_.handle = [&](HttpRequest request, HttpApp::Reply reply) -> std::shared_ptr<void> {
    HttpReply answer;
    answer.body = request.path;
    if (request.path == "/0") {
      first_reply = reply;
      first_executor = request.executor;
      first_arrived.Notify();
    } else {
      reply(std::move(answer));
    }
    return nullptr;
  };
  RawClient client(Start());
  std::string all;
  for (int i = 0; i < 20; ++i) all += Request("POST", fmt::format("/{}", i), "x");
  ASSERT_TRUE(client.Send(all));
  ASSERT_TRUE(Happens(first_arrived));
  boost::asio::post(first_executor, [&] {
    HttpReply answer;
    answer.body = "late";
    first_reply(std::move(answer));
  });
  for (int i = 0; i < 20; ++i) {
    const auto response = client.Read();
    ASSERT_TRUE(response.has_value()) << i;
    EXPECT_EQ(response->body, i == 0 ? "late" : fmt::format("/{}", i));
  }
}

TEST_F(HttpServerTest, TakesARequestByteByByteAndInChunks) {
  RawClient client(Start());
  for (const char c : Request("POST", "/slow", "hello")) ASSERT_TRUE(client.Send({&c, 1}));
  EXPECT_EQ(client.Read()->body, "POST /slow hello");
  ASSERT_TRUE(
      client.Send("POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
                  "chunked\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nT: v\r\n\r\n"));
  EXPECT_EQ(client.Read()->body, "POST /c abcde");
}

TEST_F(HttpServerTest, BoundsTheBody) {
  Start();
  EXPECT_EQ(StatusOf(Request("POST", "/", std::string(1000, 'x'))), 200);
  RawClient client(server_->port());
  ASSERT_TRUE(client.Send(Request("POST", "/", std::string(1001, 'x'))));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 413);
  EXPECT_THAT(response->body, HasSubstr("1000 bytes"));
  EXPECT_EQ(response->Header("Connection"), "close");
  EXPECT_TRUE(client.IsClosedByServer());
  std::string chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 3; ++i) chunked += "190\r\n" + std::string(400, 'y') + "\r\n";
  EXPECT_EQ(StatusOf(chunked + "0\r\n\r\n"), 413);
}

// A client that sends all of a large body before it reads must still get the answer, not a reset.
TEST_F(HttpServerTest, AnswersTooLargeABodyAlsoToAClientThatSendsAllOfIt) {
  RawClient client(Start());
  const std::string head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n";
  ASSERT_TRUE(client.Send(head));
  ASSERT_TRUE(client.Send(std::string(20000000, 'x')));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 413);
}

TEST_F(HttpServerTest, BoundsTheHeaders) {
  Start();
  EXPECT_EQ(StatusOf(Request("GET", "/", "", "A: " + std::string(1500, 'x') + "\r\n")), 200);
  EXPECT_EQ(StatusOf(Request("GET", "/", "", "A: " + std::string(2500, 'x') + "\r\n")), 431);
  EXPECT_EQ(StatusOf("GET /" + std::string(3000, 'x')), 431) << "without an end";
  std::string many;
  for (int i = 0; i < 500; ++i) many += fmt::format("h{}: v\r\n", i);
  EXPECT_EQ(StatusOf(Request("GET", "/", "", many)), 431);
}

TEST_F(HttpServerTest, RefusesMalformedRequests) {
  Start();
  for (const std::string bytes : {
           "NONSENSE\r\n\r\n",
           "GET\r\n\r\n",
           "GET / HTTP/1.1\nHost: x\n\n",
           "GET / HTTP/1.1\r\n\r\n",
           "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
           "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
           "GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n",
           "GET nopath HTTP/1.1\r\nHost: a\r\n\r\n",
           "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
           "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
           "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
           "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
           "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
           "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
       }) {
    const int status = StatusOf(bytes);
    EXPECT_TRUE(status == 400 || status == 413 || status == 505)
        << status << " for " << testing::PrintToString(bytes);
  }
  EXPECT_EQ(StatusOf("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"), 501);
  EXPECT_EQ(StatusOf(Request("POST", "/", "x", "Expect: miracles\r\n")), 417);
  EXPECT_EQ(StatusOf(Request("GET", "/", "")), 200);
}

TEST_F(HttpServerTest, RefusesAChunkHeaderWithoutEnd) {
  RawClient client(Start());
  client.Send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" +
              std::string(100000, 'e'));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_GE(response->status, 400);
  EXPECT_LT(response->status, 500);
}

TEST_F(HttpServerTest, SurvivesRandomMutationsOfARequest) {
  Start();
  std::mt19937 random(7);
  const std::string good =
      Request("POST", "/path", "some body", "A: b\r\nExpect: 100-continue\r\nConnection: close\r\n");
  for (int i = 0; i < 300; ++i) {
    std::string bytes = good;
    for (int k = 1 + static_cast<int>(random() % 4); k > 0; --k) {
      const size_t at = random() % bytes.size();
      if (random() % 3 == 0) {
        bytes.erase(at, 1 + random() % 5);
      } else {
        bytes[at] = static_cast<char>(random());
      }
      if (bytes.empty()) break;
    }
    RawClient client(server_->port());
    client.Send(bytes);
    client.ShutdownSend();
    client.ReadUntil("\r\n\r\n");
  }
  EXPECT_EQ(StatusOf(Request("GET", "/")), 200);
}

TEST_F(HttpServerTest, AsksForTheBodyWhenTheClientWaitsForThat) {
  RawClient client(Start());
  ASSERT_TRUE(
      client.Send("POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"));
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  ASSERT_TRUE(client.Send("body"));
  EXPECT_EQ(client.Read()->body, "POST /e body");
  // One that will be refused is refused before it is sent.
  ASSERT_TRUE(
      client.Send("POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4000\r\n\r\n"));
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), StartsWith("HTTP/1.1 413 "));
}

TEST_F(HttpServerTest, EchoesAFitRequestIdAndReplacesOthers) {
  RawClient client(Start());
  const auto id_of = [&](const std::string& sent) {
    client.Send(Request("GET", "/", "", sent.empty() ? "" : "X-Request-Id: " + sent + "\r\n"));
    return client.Read()->Header("x-request-id");
  };
  EXPECT_EQ(id_of("abc-1"), "abc-1");
  EXPECT_EQ(id_of(std::string(128, 'i')), std::string(128, 'i'));
  EXPECT_THAT(id_of(std::string(129, 'i')), StartsWith("req-"));
  EXPECT_THAT(id_of("two words"), StartsWith("req-"));
  EXPECT_THAT(id_of(""), StartsWith("req-"));
  EXPECT_NE(id_of(""), id_of(""));
}

TEST_F(HttpServerTest, AnswersHeadWithoutABodyAndOldClientsWithAClose) {
  RawClient client(Start());
  client.Send(Request("HEAD", "/h"));
  const auto head = client.Read(true);
  ASSERT_TRUE(head.has_value());
  EXPECT_EQ(head->Header("Content-Length"), "8");
  client.Send(Request("GET", "/h"));
  EXPECT_EQ(client.Read()->body, "GET /h ");

  RawClient old(server_->port());
  old.Send("GET /old HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.Read()->body, "GET /old ");
  EXPECT_TRUE(old.IsClosedByServer());

  RawClient last(server_->port());
  last.Send(Request("GET", "/last", "", "Connection: close\r\n"));
  EXPECT_EQ(last.Read()->Header("Connection"), "close");
  EXPECT_TRUE(last.IsClosedByServer());
}

TEST_F(HttpServerTest, ClosesAnIdleConnection) {
  config_.idle_timeout = absl::Milliseconds(30);
  RawClient idle(Start());
  EXPECT_TRUE(idle.IsClosedByServer());
}

TEST_F(HttpServerTest, AnswersAnUnfinishedRequest) {
  config_.read_timeout = absl::Milliseconds(30);
  RawClient slow(Start());
  slow.Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nonly");
  const auto response = slow.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 408);
  EXPECT_TRUE(slow.IsClosedByServer());
}

TEST_F(HttpServerTest, DropsTheWorkOfAClientThatLeaves) {
  absl::Notification arrived, dropped;
  app_.handle = [&](HttpRequest, HttpApp::Reply) {
    arrived.Notify();
    return std::make_shared<Work>(&dropped);
  };
  RawClient client(Start());
  client.Send(Request("POST", "/", "x"));
  ASSERT_TRUE(Happens(arrived));
  EXPECT_FALSE(dropped.HasBeenNotified());
  EXPECT_EQ(server_->requests_in_flight(), 1);
  client.Close();
  EXPECT_TRUE(Happens(dropped));
}

TEST_F(HttpServerTest, NoticesThatAClientLeftBehindAFullReadAhead) {
  absl::Notification arrived, dropped;
  app_.handle = [&](HttpRequest, HttpApp::Reply) {
    arrived.Notify();
    return std::make_shared<Work>(&dropped);
  };
  RawClient client(Start());
  client.Send(Request("POST", "/", "x") + std::string(100000, 'y'));
  ASSERT_TRUE(Happens(arrived));
  client.Close();
  EXPECT_TRUE(Happens(dropped));
}

TEST_F(HttpServerTest, AnswersAClientThatHasShutItsSide) {
  RawClient client(Start());
  client.Send(Request("GET", "/1") + Request("GET", "/2"));
  client.ShutdownSend();
  EXPECT_EQ(client.Read()->body, "GET /1 ");
  EXPECT_EQ(client.Read()->body, "GET /2 ");
  EXPECT_TRUE(client.IsClosedByServer());
}

TEST_F(HttpServerTest, BoundsTheConnections) {
  config_.max_connections = 2;
  RawClient first(Start()), second(server_->port());
  first.Send(Request("GET", "/"));
  second.Send(Request("GET", "/"));
  ASSERT_TRUE(first.Read().has_value() && second.Read().has_value());
  RawClient third(server_->port());
  const auto refused = third.Read();
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->status, 503);
  EXPECT_EQ(refused->Header("Connection"), "close");
  first.Send(Request("GET", "/still"));
  EXPECT_EQ(first.Read()->body, "GET /still ");
}

TEST_F(HttpServerTest, BoundsWhatIsBeingReceivedOverAllConnections) {
  Start();
  const std::string half =
      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
  std::vector<std::unique_ptr<RawClient>> slow;
  for (int i = 0; i < 64; ++i) {
    slow.push_back(std::make_unique<RawClient>(server_->port()));
    slow.back()->Send(half);
    ASSERT_THAT(slow.back()->ReadUntil("\r\n\r\n"), HasSubstr(" 100 ")) << "the server holds a place for it";
  }
  EXPECT_EQ(StatusOf(half), 503);
  EXPECT_EQ(StatusOf(Request("GET", "/")), 200);
  slow[0]->Send("3\r\nabc\r\n0\r\n\r\n");
  EXPECT_EQ(slow[0]->Read()->body, "POST / abc");
  EXPECT_EQ(StatusOf(Request("POST", "/", "x")), 200) << "its place is free again";
}

}  // namespace
}  // namespace t6::server
