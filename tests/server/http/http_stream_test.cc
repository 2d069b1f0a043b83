// The transport alone: bodies of unknown length, and the end of the server.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <atomic>
#include <boost/asio/post.hpp>

#include "tests/server/http/http_fixture.h"

namespace t6::server {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// ---- streams

// Counts what is pulled; gives `n` pieces.
class CountedStream : public BodyStream {
 public:
  CountedStream(boost::asio::any_io_executor executor, int n, std::string piece, std::atomic<int>* pulled,
                absl::Notification* dropped)
      : executor_(std::move(executor)), n_(n), piece_(std::move(piece)), pulled_(pulled), dropped_(dropped) {}
  ~CountedStream() override { dropped_->Notify(); }
  void Next(std::function<void(Piece)> done) override {
    const int i = ++*pulled_;
    boost::asio::post(executor_,
                      [piece = Piece{piece_, i == n_, false}, done = std::move(done)] { done(piece); });
  }

 private:
  boost::asio::any_io_executor executor_;
  const int n_;
  const std::string piece_;
  std::atomic<int>* const pulled_;
  absl::Notification* const dropped_;
};

class HttpStreamTest : public HttpServerTest {
 protected:
  void Serve(int n, std::string piece) {
    app_.handle = [this, n, piece](HttpRequest request, HttpApp::Reply reply) -> std::shared_ptr<void> {
      HttpReply answer;
      answer.body = "first,";
      answer.stream = std::make_shared<CountedStream>(request.executor, n, piece, &pulled_, &dropped_);
      reply(std::move(answer));
      return nullptr;
    };
  }
  std::atomic<int> pulled_{0};
  absl::Notification dropped_;
};

TEST_F(HttpStreamTest, WritesPiecesAsChunksAndKeepsTheConnection) {
  Serve(3, "piece,");
  RawClient client(Start());
  client.Send(Request("GET", "/"));
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->Header("Transfer-Encoding"), "chunked");
  EXPECT_EQ(response->body, "first,piece,piece,piece,");
  EXPECT_TRUE(Happens(dropped_));
  app_.handle = nullptr;
  client.Send(Request("GET", "/again"));
  EXPECT_EQ(client.Read()->body, "GET /again ");
}

TEST_F(HttpStreamTest, EndsAnOldClientsStreamWithAClose) {
  Serve(2, "piece,");
  RawClient client(Start());
  client.Send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const auto response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->Header("Transfer-Encoding"), "");
  EXPECT_EQ(response->body, "first,piece,piece,");
}

TEST_F(HttpStreamTest, PullsNoFurtherThanASlowReaderReads) {
  config_.write_timeout = absl::Milliseconds(200);
  Serve(1000, std::string(1 << 20, 'p'));
  RawClient client(Start(), /*small_buffers=*/true);
  client.Send(Request("GET", "/"));
  ASSERT_TRUE(Happens(dropped_)) << "the write deadline ends it";
  EXPECT_LT(pulled_, 50) << "what the kernel's buffers hold, and one piece";
}

TEST_F(HttpStreamTest, StopsAStreamWhoseReaderLeft) {
  Serve(1 << 30, "p");
  RawClient client(Start());
  client.Send(Request("GET", "/"));
  client.ReadUntil("first,");
  client.Close();
  EXPECT_TRUE(Happens(dropped_));
}

// ---- the end

TEST_F(HttpServerTest, StopWaitsForAnswersInFlight) {
  const char* own = "127.0.0.7";  // where no other process may take the port once it is free
  config_.address.host = own;
  absl::Notification arrived;
  HttpApp::Reply later;
  boost::asio::any_io_executor executor;
  app_.handle = [&](HttpRequest request, HttpApp::Reply reply) -> std::shared_ptr<void> {
    later = reply;
    executor = request.executor;
    arrived.Notify();
    return nullptr;
  };
  RawClient idle(Start(), false, own), busy(server_->port(), false, own);
  busy.Send(Request("GET", "/"));
  ASSERT_TRUE(Happens(arrived));
  server_->Drain();
  EXPECT_TRUE(idle.IsClosedByServer());
  boost::asio::post(executor, [&] {
    HttpReply reply;
    reply.body = "in time";
    later(std::move(reply));
  });
  EXPECT_TRUE(server_->Stop(absl::Now() + kPatience));
  const auto response = busy.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->body, "in time");
  EXPECT_EQ(response->Header("Connection"), "close");
  EXPECT_EQ(server_->connections(), 0);
  RawClient late(server_->port(), false, own);
  EXPECT_FALSE(late.Send("x"));
}

TEST_F(HttpServerTest, StopCutsOffWhatIsLate) {
  absl::Notification arrived, dropped;
  app_.handle = [&](HttpRequest, HttpApp::Reply) {
    arrived.Notify();
    return std::make_shared<Work>(&dropped);
  };
  RawClient client(Start());
  client.Send(Request("GET", "/"));
  ASSERT_TRUE(Happens(arrived));
  EXPECT_FALSE(server_->Stop(absl::Now()));
  EXPECT_TRUE(dropped.HasBeenNotified());
  EXPECT_FALSE(client.Read().has_value());
}

TEST_F(HttpServerTest, NamesTheAddressItCannotListenOn) {
  config_.address = {"127.0.0.1", static_cast<uint16_t>(Start())};
  const auto second = HttpServer::Start(executor_.io(), config_, &app_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(config_.address.ToString()));
  config_.address.host = "not-an-address";
  EXPECT_FALSE(HttpServer::Start(executor_.io(), config_, &app_).ok());
}

}  // namespace
}  // namespace t6::server
