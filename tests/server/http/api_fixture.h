// HttpApi over handlers that do as told, behind a real socket.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "server/http/api.h"
#include "server/http/http_server.h"
#include "server/http/json_value.h"
#include "tests/server/http/fake_handlers.h"
#include "tests/server/http/raw_client.h"
#include "tests/support/patience.h"

namespace t6::server {

inline constexpr char kChatPath[] = "/v1/chat/completions";
inline constexpr char kCompletionPath[] = "/v1/completions";
inline constexpr char kHello[] = R"({"messages": [{"role": "user", "content": "hi"}]})";
inline constexpr char kHelloStream[] = R"({"messages": [{"role": "user", "content": "hi"}], "stream": true})";

class ApiTest : public testing::Test {
 protected:
  ApiTest() { Serve(&api_); }
  ~ApiTest() override {
    server_->Stop(absl::Now() + kPatience);
    texts_.Stop();
    executor_.Stop();
  }

  static HttpConfig TestConfig() {
    HttpConfig config;
    config.address = {"127.0.0.1", 0};
    config.idle_timeout = config.read_timeout = config.write_timeout = config.linger_timeout = absl::Hours(1);
    return config;
  }
  Handlers TestHandlers() { return {&chat_, &completion_, &info_, &executor_, &texts_}; }
  // Instead of what was served before.
  void Serve(HttpApi* api) {
    if (server_ != nullptr) server_->Stop(absl::Now() + kPatience);
    server_ = *HttpServer::Start(executor_.io(), TestConfig(), api);
  }
  RawResponse Ask(const std::string& bytes, bool head = false) {
    RawClient client(server_->port());
    client.Send(bytes);
    return client.Read(head).value_or(RawResponse{});
  }

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

  Executor executor_{2}, texts_{1, /*max_waiting=*/2};
  FakeChat chat_{&executor_};
  FakeCompletion completion_{&executor_};
  FakeInfo info_;
  FakeAdmin admin_;
  HttpApi api_{TestHandlers(), admin_, TestConfig()};
  std::unique_ptr<HttpServer> server_;
};

}  // namespace t6::server
