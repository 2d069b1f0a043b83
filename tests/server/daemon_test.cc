#include "server/daemon.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <filesystem>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "t6/v1/completions.grpc.pb.h"
#include "tests/server/served_world.h"

namespace t6::server {
namespace {

using testing::HasSubstr;

ServerConfig TestConfig() {
  ServerConfig config;
  config.engine.model_directory = kModelDirectory;
  config.served_model_name = "docqa";
  config.http.address.port = 0;
  config.grpc.address.port = 0;
  config.drain_grace = absl::Hours(1);  // a test that waits for it would not end
  config.drain_deadline = absl::Hours(1);
  return config;
}

struct Answer {
  int status = 0;
  std::string body;
};

Answer Get(int port, const std::string& path, const std::string& authorization = "") {
  namespace http = boost::beast::http;
  boost::asio::io_context io;
  boost::asio::ip::tcp::socket socket(io);
  socket.connect({boost::asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(port)});
  http::request<http::empty_body> request(http::verb::get, path, 11);
  request.set(http::field::host, "localhost");
  if (!authorization.empty()) request.set(http::field::authorization, authorization);
  request.keep_alive(false);
  http::write(socket, request);
  boost::beast::flat_buffer buffer;
  http::response<http::string_body> response;
  http::read(socket, buffer, response);
  return {static_cast<int>(response.result_int()), response.body()};
}

// A daemon over a fake engine, which the daemon owns.
class DaemonTest : public testing::Test {
 protected:
  ~DaemonTest() override {
    if (waiter_.joinable()) {
      for (int i = 0; i < 3; ++i) daemon_->RequestStop(true);
      waiter_.join();
    }
  }

  void Make(const ServerConfig& config = TestConfig()) {
    daemon_ = std::make_unique<Daemon>(config, [this](const EngineConfig& engine_config, EngineMetrics*) {
      n_text_tokens_ = engine_config.n_text_tokens;
      before_load_();
      auto engine = std::make_unique<FakeEngine>();
      engine_ = engine.get();
      return StatusOr<std::unique_ptr<Engine>>(std::move(engine));
    });
  }
  void StartAndWait(const ServerConfig& config = TestConfig()) {
    Make(config);
    const Status started = daemon_->Start();
    ASSERT_TRUE(started.ok()) << started;
    waiter_ = std::thread([this] {
      result_ = daemon_->Wait();
      ended_.Notify();
    });
  }
  std::shared_ptr<grpc::Channel> Channel() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                     static_cast<int>(absl::ToInt64Milliseconds(kPatience)));
    return grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", daemon_->grpc_port()),
                                     grpc::InsecureChannelCredentials(), arguments);
  }
  // Another thread moves the state; there is nothing to be notified by.
  bool Reaches(ServingState state) {
    const absl::Time limit = absl::Now() + kPatience;
    while (daemon_->state() != state && absl::Now() < limit) std::this_thread::yield();
    return daemon_->state() == state;
  }
  bool Ended() { return ended_.WaitForNotificationWithTimeout(kPatience); }

  struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<v1::Completions::Stub> stub;
    std::unique_ptr<grpc::ClientReader<v1::CompletionChunk>> reader;
  };
  std::unique_ptr<Stream> Open() {
    auto stream = std::make_unique<Stream>();
    stream->stub = v1::Completions::NewStub(Channel());
    v1::CompletionRequest request;
    request.add_prompts()->set_text("x");
    request.mutable_sampling()->set_max_tokens(10);
    stream->reader = stream->stub->StreamCompletion(&stream->context, request);
    return stream;
  }

  std::function<void()> before_load_ = [] {};
  int n_text_tokens_ = 0;
  FakeEngine* engine_ = nullptr;
  std::unique_ptr<Daemon> daemon_;
  std::thread waiter_;
  absl::Notification ended_;
  Status result_;
};

TEST_F(DaemonTest, IsReadyOnlyOnceTheModelIsThere) {
  absl::Notification load;
  absl::Notification loading;
  before_load_ = [&] {
    loading.Notify();
    load.WaitForNotification();
  };
  Make();
  std::thread starter([&] { EXPECT_TRUE(daemon_->Start().ok()); });
  loading.WaitForNotification();
  EXPECT_EQ(daemon_->state(), ServingState::kStarting);
  EXPECT_EQ(Get(daemon_->http_port(), "/livez").status, 200);
  EXPECT_EQ(Get(daemon_->http_port(), "/readyz").status, 503);
  auto early = Open();
  v1::CompletionChunk chunk;
  EXPECT_FALSE(early->reader->Read(&chunk));
  EXPECT_EQ(early->reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  load.Notify();
  starter.join();
  EXPECT_EQ(Get(daemon_->http_port(), "/readyz").status, 200);
  EXPECT_EQ(n_text_tokens_, RealTokenizer().n_tokens());
}

TEST_F(DaemonTest, GraceStillServesThenDrainFinishesWhatRuns) {
  StartAndWait();
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 8; ++i) streams.push_back(Open());
  engine_->WaitForSubmit(7);

  daemon_->RequestStop(/*skip_grace=*/false);
  ASSERT_TRUE(Reaches(ServingState::kGrace));
  EXPECT_EQ(Get(daemon_->http_port(), "/readyz").status, 503);
  EXPECT_EQ(Get(daemon_->http_port(), "/livez").status, 200);
  grpc::health::v1::HealthCheckResponse health;
  grpc::ClientContext context;
  ASSERT_TRUE(grpc::health::v1::Health::NewStub(Channel())->Check(&context, {}, &health).ok());
  EXPECT_EQ(health.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  streams.push_back(Open());  // still served
  engine_->WaitForSubmit(8);

  daemon_->RequestStop(/*skip_grace=*/false);  // a second signal cuts the grace
  ASSERT_TRUE(Reaches(ServingState::kDraining));
  auto late = Open();
  v1::CompletionChunk chunk;
  EXPECT_FALSE(late->reader->Read(&chunk));
  EXPECT_EQ(late->reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(ended_.HasBeenNotified()) << "nine streams still run";

  for (size_t i = 0; i < streams.size(); ++i) {
    const Submitted submitted = engine_->WaitForSubmit(i);
    TokenEvent event = Tokens(Encode("done"));
    event.finish = FinishReason::kLength;
    submitted.events->Push(event);
  }
  for (auto& stream : streams) {
    std::string text;
    while (stream->reader->Read(&chunk)) text += chunk.choice().text();
    EXPECT_EQ(text, "done");
    EXPECT_TRUE(stream->reader->Finish().ok());
  }
  ASSERT_TRUE(Ended());
  EXPECT_TRUE(result_.ok()) << result_;
  EXPECT_EQ(daemon_->state(), ServingState::kStopped);
}

TEST_F(DaemonTest, TheDrainDeadlineCutsOff) {
  ServerConfig config = TestConfig();
  config.drain_deadline = absl::Milliseconds(50);
  StartAndWait(config);
  auto stuck = Open();
  engine_->WaitForSubmit(0);
  daemon_->RequestStop(/*skip_grace=*/true);
  ASSERT_TRUE(Ended());
  EXPECT_TRUE(result_.ok()) << result_;
  EXPECT_FALSE(stuck->reader->Finish().ok());
}

TEST_F(DaemonTest, AnotherSignalCutsTheDrain) {
  StartAndWait();
  auto stuck = Open();
  engine_->WaitForSubmit(0);
  daemon_->RequestStop(/*skip_grace=*/true);
  ASSERT_TRUE(Reaches(ServingState::kDraining));
  daemon_->RequestStop(/*skip_grace=*/true);
  ASSERT_TRUE(Ended());
  EXPECT_FALSE(stuck->reader->Finish().ok());
}

TEST_F(DaemonTest, AFailedEngineEndsTheDaemonWithItsReason) {
  StartAndWait();
  engine_->SetHealth(Internal("the device is gone"));
  ASSERT_TRUE(Ended());
  EXPECT_THAT(std::string(result_.message()), HasSubstr("the device is gone"));
  EXPECT_EQ(daemon_->state(), ServingState::kFailed);
  // Until the process ends, nobody is sent here.
  EXPECT_EQ(Get(daemon_->http_port(), "/readyz").status, 503);
  grpc::health::v1::HealthCheckResponse health;
  grpc::ClientContext context;
  ASSERT_TRUE(grpc::health::v1::Health::NewStub(Channel())->Check(&context, {}, &health).ok());
  EXPECT_EQ(health.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
}

// The error that the engine gives its requests when the device fails.
TokenEvent Gone() {
  TokenEvent event = Finished(FinishReason::kError);
  event.status = Internal("the device is gone");
  return event;
}

TEST_F(DaemonTest, WhoeverWaitsForAFailedEngineHearsOfIt) {
  StartAndWait();
  const auto stream = Open();
  const Submitted submitted = engine_->WaitForSubmit(0);
  engine_->SetHealth(Internal("the device is gone"));
  ASSERT_TRUE(Reaches(ServingState::kFailed));
  EXPECT_FALSE(ended_.WaitForNotificationWithTimeout(absl::Milliseconds(200))) << "nobody was told yet";
  submitted.events->Push(Gone());
  ASSERT_TRUE(Ended());
  waiter_.join();
  daemon_.reset();
  v1::CompletionChunk chunk;
  while (stream->reader->Read(&chunk)) continue;
  const grpc::Status status = stream->reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("the device is gone"));
}

TEST_F(DaemonTest, AnEngineThatFailsInGraceEndsTheDaemon) {
  StartAndWait();
  daemon_->RequestStop(/*skip_grace=*/false);
  ASSERT_TRUE(Reaches(ServingState::kGrace));
  engine_->SetHealth(Internal("the device is gone"));
  ASSERT_TRUE(Ended()) << "grace is an hour here";
  EXPECT_THAT(std::string(result_.message()), HasSubstr("the device is gone"));
}

TEST_F(DaemonTest, AnEngineThatFailsInTheDrainIsNoSuccess) {
  StartAndWait();
  const auto stream = Open();
  const Submitted submitted = engine_->WaitForSubmit(0);
  daemon_->RequestStop(/*skip_grace=*/true);
  ASSERT_TRUE(Reaches(ServingState::kDraining));
  engine_->SetHealth(Internal("the device is gone"));
  submitted.events->Push(Gone());
  EXPECT_EQ(stream->reader->Finish().error_code(), grpc::StatusCode::INTERNAL);
  ASSERT_TRUE(Ended());
  EXPECT_THAT(std::string(result_.message()), HasSubstr("the device is gone"));
}

TEST_F(DaemonTest, MetricsHaveEveryPublishedName) {
  StartAndWait();
  const std::string text = Get(daemon_->http_port(), "/metrics").body;
  for (const char* name :
       {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds", "vllm:e2e_request_latency_seconds",
        "vllm:request_queue_time_seconds", "vllm:num_preemptions_total", "vllm:request_success_total",
        "t6:requests_total", "t6:ready{model_name=\"docqa\"} 1",
        "t6:build_info{model_name=\"docqa\",version=", "process_start_time_seconds{",
        "# TYPE process_cpu_seconds_total counter", "process_resident_memory_bytes{"}) {
    EXPECT_THAT(text, HasSubstr(name));
  }
}

TEST_F(DaemonTest, HealthAndMetricsCanHaveAPortOfTheirOwn) {
  ServerConfig config = TestConfig();
  config.admin = ListenAddress{"127.0.0.1", 0};
  config.port_file = testing::TempDir() + "/t6d-daemon-test-admin-" + std::to_string(getpid()) + ".json";
  StartAndWait(config);
  std::ifstream file(config.port_file);
  const int admin = nlohmann::json::parse(file)["admin"];
  std::filesystem::remove(config.port_file);
  EXPECT_EQ(admin, daemon_->admin_port());
  EXPECT_THAT(Get(admin, "/metrics").body, HasSubstr("t6:ready"));
  EXPECT_EQ(Get(admin, "/readyz").status, 200);
  EXPECT_EQ(Get(admin, "/v1/models").status, 404);
  EXPECT_EQ(Get(daemon_->http_port(), "/metrics").status, 404);
  EXPECT_EQ(Get(daemon_->http_port(), "/readyz").status, 200);
  auto running = Open();
  const Submitted submitted = engine_->WaitForSubmit(0);
  daemon_->RequestStop(/*skip_grace=*/true);
  ASSERT_TRUE(Reaches(ServingState::kDraining));
  EXPECT_EQ(Get(admin, "/readyz").status, 503) << "it answers as long as anything runs";
  submitted.events->Push(Finished(FinishReason::kStop));
  ASSERT_TRUE(Ended());
}

TEST_F(DaemonTest, ThePortForHealthAnswersWhileEveryHandlerIsBusy) {
  ServerConfig config = TestConfig();
  config.admin = ListenAddress{"127.0.0.1", 0};
  Make(config);
  ASSERT_TRUE(daemon_->Start().ok());
  absl::Notification go_on;
  engine_->on_submit = [&](const Submitted& s) {
    go_on.WaitForNotification();
    s.events->Push(Finished(FinishReason::kStop));
  };
  // More than the daemon has threads for.
  std::vector<std::unique_ptr<Stream>> streams(8);
  for (auto& stream : streams) stream = Open();
  engine_->WaitForSubmit(1);
  auto probe = std::async(std::launch::async, [&] { return Get(daemon_->admin_port(), "/livez").status; });
  EXPECT_EQ(probe.wait_for(absl::ToChronoSeconds(kPatience)), std::future_status::ready);
  go_on.Notify();
  EXPECT_EQ(probe.get(), 200);
  v1::CompletionChunk chunk;
  for (auto& stream : streams) {
    while (stream->reader->Read(&chunk)) {
    }
    EXPECT_TRUE(stream->reader->Finish().ok());
  }
}

TEST_F(DaemonTest, KeysAreCheckedCountedAndReadAgain) {
  ServerConfig config = TestConfig();
  config.api_key_file = testing::TempDir() + "/t6d-daemon-test-keys-" + std::to_string(getpid());
  // printf %s alpha | sha256sum
  std::ofstream(config.api_key_file)
      << "acme sha256:8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8\n";
  StartAndWait(config);
  EXPECT_EQ(Get(daemon_->http_port(), "/v1/models").status, 401);
  EXPECT_THAT(
      Get(daemon_->http_port(), "/metrics").body,
      HasSubstr("t6:requests_total{code=\"UNAUTHENTICATED\",model_name=\"docqa\",transport=\"http\"} 1"));
  EXPECT_TRUE(daemon_->ReloadKeys().ok());
  std::filesystem::remove(config.api_key_file);
  EXPECT_THAT(std::string(daemon_->ReloadKeys().message()), HasSubstr(config.api_key_file));
  EXPECT_EQ(Get(daemon_->http_port(), "/v1/models").status, 401);
}

// Loading may take minutes, and a key that is taken away meanwhile must not live on.
TEST_F(DaemonTest, KeysAreReadAgainWhileTheModelLoads) {
  ServerConfig config = TestConfig();
  config.api_key_file = testing::TempDir() + "/t6d-daemon-test-late-keys-" + std::to_string(getpid());
  const auto write = [&](const char* digest) {
    std::ofstream(config.api_key_file, std::ios::trunc) << "acme sha256:" << digest << "\n";
  };
  // printf %s alpha | sha256sum, and of beta
  write("8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8");
  before_load_ = [&] {
    write("f44e64e75f3948e9f73f8dfa94721c4ce8cbb4f265c4790c702b2d41cfbf2753");
    EXPECT_TRUE(daemon_->ReloadKeys().ok());
  };
  Make(config);
  EXPECT_TRUE(daemon_->ReloadKeys().ok()) << "before the first reading there is nothing to do";
  ASSERT_TRUE(daemon_->Start().ok());
  EXPECT_EQ(Get(daemon_->http_port(), "/v1/models", "Bearer alpha").status, 401);
  EXPECT_EQ(Get(daemon_->http_port(), "/v1/models", "Bearer beta").status, 200);
  std::filesystem::remove(config.api_key_file);
}

TEST_F(DaemonTest, ThePortFileTellsThePorts) {
  ServerConfig config = TestConfig();
  config.port_file = testing::TempDir() + "/t6d-daemon-test-ports-" + std::to_string(getpid()) + ".json";
  StartAndWait(config);
  std::ifstream file(config.port_file);
  const auto ports = nlohmann::json::parse(file);
  EXPECT_EQ(ports["http"], daemon_->http_port());
  EXPECT_EQ(ports["grpc"], daemon_->grpc_port());
  std::filesystem::remove(config.port_file);
}

TEST_F(DaemonTest, WhatCannotStartSaysWhy) {
  const auto error = [this](const ServerConfig& config) {
    Make(config);
    return std::string(daemon_->Start().message());
  };
  ServerConfig config = TestConfig();
  config.tokenizer_directory = "/nowhere";
  EXPECT_THAT(error(config), HasSubstr("/nowhere"));
  config = TestConfig();
  config.chat_template_file = "/nowhere.jinja";
  EXPECT_THAT(error(config), HasSubstr("/nowhere.jinja"));
  config = TestConfig();
  config.eos_ids = {9000};
  EXPECT_THAT(error(config), HasSubstr("--eos-id 9000"));
  config = TestConfig();
  config.api_key_file = "/nowhere.keys";
  EXPECT_THAT(error(config), HasSubstr("--api-key-file: /nowhere.keys: no such file"));
  config = TestConfig();
  config.port_file = "/nowhere/ports";
  EXPECT_THAT(error(config), HasSubstr("/nowhere/ports"));

  StartAndWait();
  config = TestConfig();
  config.http.address.port = static_cast<uint16_t>(daemon_->http_port());
  Daemon second(config, [](const EngineConfig&, EngineMetrics*) -> StatusOr<std::unique_ptr<Engine>> {
    return Internal("never loaded");
  });
  EXPECT_THAT(std::string(second.Start().message()), HasSubstr("in use"));
}

TEST_F(DaemonTest, TheEnginesErrorEndsTheStart) {
  Daemon daemon(TestConfig(), [](const EngineConfig&, EngineMetrics*) -> StatusOr<std::unique_ptr<Engine>> {
    return InvalidArgument("transformer.wte.weight is missing");
  });
  EXPECT_THAT(std::string(daemon.Start().message()), HasSubstr("transformer.wte.weight is missing"));
}

}  // namespace
}  // namespace t6::server
