// The HTTP transport with a fake application behind it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/executor.h"
#include "server/http/http_server.h"
#include "tests/server/http/raw_client.h"
#include "tests/support/patience.h"

namespace t6::server {

// Work that says when it was dropped.
struct Work {
  explicit Work(absl::Notification* dropped) : dropped(dropped) {}
  ~Work() { dropped->Notify(); }
  absl::Notification* dropped;
};

// Answers with method, path and body, unless a test says what to do.
class FakeApp : public HttpApp {
 public:
  std::function<std::shared_ptr<void>(HttpRequest, Reply)> handle;

  std::shared_ptr<void> Handle(HttpRequest request, Reply reply) override {
    if (handle) return handle(std::move(request), std::move(reply));
    HttpReply echo;
    echo.content_type = "text/plain";
    echo.body = request.method + " " + request.path + " " + request.body;
    request.body_bytes.reset();  // or a client that has the answer might find them taken still
    reply(std::move(echo));
    return nullptr;
  }
  HttpReply Error(int status, std::string_view message) override {
    HttpReply reply;
    reply.status = status;
    reply.body = std::string(message);
    return reply;
  }
};

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    config_.address = {"127.0.0.1", 0};
    config_.max_body_bytes = 1000;
    config_.max_header_bytes = 2000;
    // A test that needs one of these to end says so.
    config_.idle_timeout = config_.read_timeout = config_.write_timeout = config_.linger_timeout =
        absl::Hours(1);
  }
  ~HttpServerTest() override {
    if (server_) server_->Stop(absl::Now() + kPatience);
    executor_.Stop();
  }
  int Start() {
    auto server = HttpServer::Start(executor_.io(), config_, &app_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    return server_->port();
  }
  // What the server says to these bytes.
  int StatusOf(std::string_view bytes) {
    RawClient client(server_->port());
    client.Send(bytes);
    const auto response = client.Read();
    return response.has_value() ? response->status : 0;
  }

  HttpConfig config_;
  FakeApp app_;
  Executor executor_{2};
  std::unique_ptr<HttpServer> server_;
};

}  // namespace t6::server
