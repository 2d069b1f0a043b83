// HttpApi over handlers that do as told, behind a real socket.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "server/http/api.h"
#include "server/http/http_server.h"
#include "tests/server/http/fake_handlers.h"
#include "tests/server/http/raw_client.h"

namespace t6::server {

class ApiFixture : public testing::Test {
 protected:
  ApiFixture() { Serve(&api_); }
  ~ApiFixture() override {
    server_->Stop(absl::Now() + absl::Seconds(10));
    texts_.Stop();
    executor_.Stop();
  }

  static HttpConfig TestConfig() {
    HttpConfig config;
    config.address = {"127.0.0.1", 0};
    return config;
  }
  Handlers TestHandlers() { return {&chat_, &completion_, &info_, &executor_, &texts_}; }
  // Instead of what was served before.
  void Serve(HttpApi* api) {
    if (server_ != nullptr) server_->Stop(absl::Now() + absl::Seconds(10));
    server_ = *HttpServer::Start(executor_.io(), TestConfig(), api);
  }
  RawResponse Ask(const std::string& bytes, bool head = false) {
    RawClient client(server_->port());
    client.Send(bytes);
    return client.Read(head).value_or(RawResponse{});
  }

  Executor executor_{2}, texts_{1};
  FakeChat chat_{&executor_};
  FakeCompletion completion_{&executor_};
  FakeInfo info_;
  FakeAdmin admin_;
  HttpApi api_{TestHandlers(), admin_, TestConfig()};
  std::unique_ptr<HttpServer> server_;
};

}  // namespace t6::server
