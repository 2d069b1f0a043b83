#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/auth.h"
#include "server/grpc/grpc_server.h"
#include "server/grpc/load_service.h"
#include "t6/v1/chat.grpc.pb.h"
#include "t6/v1/completions.grpc.pb.h"
#include "t6/v1/models.grpc.pb.h"
#include "t6/v1/tokenizer.grpc.pb.h"
#include "tests/server/served_world.h"
#include "xds/service/orca/v3/orca.grpc.pb.h"

namespace t6::server {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using testing::HasSubstr;
using xds::data::orca::v3::OrcaLoadReport;
using xds::service::orca::v3::OpenRcaService;
using xds::service::orca::v3::OrcaLoadReportRequest;

class FakeAdmin final : public Admin {
 public:
  std::atomic<ServingState> current{ServingState::kServing};
  ServingState state() const override { return current; }
  std::atomic<int> waiting{3};
  LoadReport Load() const override {
    return {.application_utilization = 1.25,
            .requests_per_second = 12.5,
            .errors_per_second = 0.5,
            .named = {{"num_requests_waiting", waiting.load()}}};
  }
  std::string MetricsText() const override { return ""; }
  std::string Version() const override { return ""; }
};

v1::CompletionRequest Ask(const std::string& text, int max_tokens) {
  v1::CompletionRequest request;
  request.add_prompts()->set_text(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

class GrpcTest : public testing::Test {
 protected:
  GrpcTest() {
    config_.address.port = 0;
    server_ = GrpcServer::Start(config_, world_.handlers(), &admin_, &world_.executor).value();
    server_->SetServing(true);
    channel_ = NewChannel();
  }

  std::shared_ptr<grpc::Channel> NewChannel(grpc::ChannelArguments arguments = {}) {
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(-1);
    return grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server_->port()),
                                     grpc::InsecureChannelCredentials(), arguments);
  }
  grpc::Status Complete(const v1::CompletionRequest& request, v1::CompletionResponse* response,
                        grpc::ClientContext* context) {
    return v1::Completions::NewStub(channel_)->CreateCompletion(context, request, response);
  }

  ServedWorld world_;
  FakeAdmin admin_;
  GrpcConfig config_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(GrpcTest, UnaryAndStreamGiveTheSameText) {
  world_.engine.AnswerWith(Encode("Der Fuchs 🦊 kostet sechs Euro."));
  v1::CompletionResponse response;
  grpc::ClientContext unary;
  ASSERT_TRUE(Complete(Ask("x", 100), &response, &unary).ok());

  grpc::ClientContext context;
  auto reader = v1::Completions::NewStub(channel_)->StreamCompletion(&context, Ask("x", 100));
  v1::CompletionChunk chunk;
  std::string text;
  v1::Usage usage;
  while (reader->Read(&chunk)) {
    text += chunk.choice().text();
    if (chunk.has_usage()) usage = chunk.usage();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, response.choices(0).text());
  EXPECT_EQ(usage.completion_tokens(), 100);
}

TEST_F(GrpcTest, ChatModelsAndTokenizerAnswer) {
  std::vector<int32_t> answer = Encode("1931");
  answer.push_back(4);
  world_.engine.AnswerWith(answer);
  v1::ChatCompletionRequest request;
  request.add_messages()->set_role("user");
  request.mutable_messages(0)->set_content("When?");
  v1::ChatCompletionResponse response;
  grpc::ClientContext chat;
  ASSERT_TRUE(v1::Chat::NewStub(channel_)->CreateCompletion(&chat, request, &response).ok());
  EXPECT_EQ(response.choices(0).message().content(), "1931");

  grpc::ClientContext stream;
  auto reader = v1::Chat::NewStub(channel_)->StreamCompletion(&stream, request);
  v1::ChatCompletionChunk chunk;
  std::string text, roles;
  while (reader->Read(&chunk)) {
    text += chunk.choice().message().content();
    roles += chunk.choice().message().role();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "1931");
  EXPECT_EQ(roles, "assistant");

  grpc::ClientContext list, get, tokenize;
  v1::ListModelsResponse models;
  ASSERT_TRUE(v1::Models::NewStub(channel_)->List(&list, {}, &models).ok());
  EXPECT_EQ(models.models(0).id(), "docqa");
  v1::GetModelRequest name;
  name.set_id("nope");
  v1::Model model;
  EXPECT_EQ(v1::Models::NewStub(channel_)->Get(&get, name, &model).error_code(), grpc::StatusCode::NOT_FOUND);
  v1::TokenizeRequest text_request;
  text_request.set_prompt("a b");
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(v1::Tokenizer::NewStub(channel_)->Tokenize(&tokenize, text_request, &tokens).ok());
  EXPECT_EQ(tokens.count(), static_cast<int>(Encode("a b").size()));
}

TEST_F(GrpcTest, ErrorsCarryCodeValueAndField) {
  v1::CompletionRequest request = Ask("x", 5);
  request.mutable_sampling()->set_top_p(7);
  v1::CompletionResponse response;
  grpc::ClientContext context;
  const grpc::Status status = Complete(request, &response, &context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("top_p is 7"));
  const auto param = context.GetServerTrailingMetadata().find("t6-error-param");
  ASSERT_NE(param, context.GetServerTrailingMetadata().end());
  EXPECT_EQ(param->second, "top_p");
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 0u);
}

TEST_F(GrpcTest, BusyAndDrainingHintAtARetry) {
  world_.engine.refusal = ResourceExhausted("the queue is full");
  v1::CompletionResponse response;
  grpc::ClientContext busy;
  EXPECT_EQ(Complete(Ask("x", 5), &response, &busy).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(busy.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  for (const ServingState state : {ServingState::kStarting, ServingState::kDraining, ServingState::kFailed}) {
    admin_.current = state;
    grpc::ClientContext context;
    EXPECT_EQ(Complete(Ask("x", 5), &response, &context).error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
    grpc::ClientContext streaming;
    auto reader = v1::Completions::NewStub(channel_)->StreamCompletion(&streaming, Ask("x", 5));
    v1::CompletionChunk chunk;
    EXPECT_FALSE(reader->Read(&chunk));
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

// A refusal must be trailers alone: after headers gRPC's retries take a call for begun.
TEST_F(GrpcTest, GrpcsOwnRetriesSeeARefusal) {
  world_.engine.refusal = ResourceExhausted("the queue is full");
  world_.engine.refusals = 2;
  world_.engine.AnswerWith({9});
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(R"({"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5,
      "initialBackoff": "60s", "maxBackoff": "60s", "backoffMultiplier": 1,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]})");
  const auto channel = NewChannel(arguments);
  v1::CompletionResponse response;
  grpc::ClientContext context;
  const auto started = std::chrono::steady_clock::now();
  const grpc::Status status =
      v1::Completions::NewStub(channel)->CreateCompletion(&context, Ask("x", 1), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(30)) << "the hint was not used";
}

TEST_F(GrpcTest, RequestIdsAreEchoedOrMadeUp) {
  world_.engine.AnswerWith({9});
  v1::CompletionResponse response;
  grpc::ClientContext named;
  named.AddMetadata("x-request-id", "mine-1");
  ASSERT_TRUE(Complete(Ask("x", 1), &response, &named).ok());
  EXPECT_EQ(named.GetServerTrailingMetadata().find("x-request-id")->second, "mine-1");
  EXPECT_EQ(world_.engine.WaitForSubmit(0).request.name, "mine-1");
  grpc::ClientContext bad;
  bad.AddMetadata("x-request-id", std::string(129, 'x'));
  ASSERT_TRUE(Complete(Ask("x", 1), &response, &bad).ok());
  const auto made = bad.GetServerTrailingMetadata().find("x-request-id")->second;
  EXPECT_EQ(std::string(made.data(), made.size()).substr(0, 4), "req-");
}

TEST_F(GrpcTest, TheDeadlineReachesTheEngineAndEndsTheCall) {
  grpc::ClientContext context;
  const auto deadline = std::chrono::system_clock::now() + std::chrono::milliseconds(300);
  context.set_deadline(deadline);
  v1::CompletionResponse response;
  EXPECT_EQ(Complete(Ask("x", 5), &response, &context).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  const Submitted submitted = world_.engine.WaitForSubmit(0);
  EXPECT_LT(absl::AbsDuration(submitted.request.deadline - absl::FromChrono(deadline)),
            absl::Milliseconds(250));
  EXPECT_TRUE(world_.engine.WaitForCancel(submitted.events->id()));
  // A call without one gets none.
  world_.engine.AnswerWith({9});
  grpc::ClientContext patient;
  ASSERT_TRUE(Complete(Ask("x", 1), &response, &patient).ok());
  EXPECT_EQ(world_.engine.WaitForSubmit(1).request.deadline, absl::InfiniteFuture());
}

TEST_F(GrpcTest, CancellingAStreamCancelsItsRequest) {
  grpc::ClientContext context;
  auto reader = v1::Completions::NewStub(channel_)->StreamCompletion(&context, Ask("x", 100));
  const Submitted submitted = world_.engine.WaitForSubmit(0);
  submitted.events->Push(Tokens(Encode("one")));
  v1::CompletionChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(world_.engine.WaitForCancel(submitted.events->id()));
}

TEST_F(GrpcTest, ASlowReaderHoldsNobodyAndLosesNothing) {
  const std::vector<int32_t> ids = Encode(" word");
  v1::CompletionRequest request = Ask("x", 1500);
  request.set_return_token_ids(true);
  request.set_logprobs(20);  // makes chunks large, so that flow control stops the writes
  grpc::ClientContext context;
  auto reader = v1::Completions::NewStub(channel_)->StreamCompletion(&context, request);
  const Submitted submitted = world_.engine.WaitForSubmit(0);
  const int n_events = 1500;
  for (int i = 0; i < n_events; ++i) {
    TokenEvent event = Tokens({ids[0]});
    for (int top = 0; top < 20; ++top) event.tokens[0].top.push_back({top + 100, -1.0f});
    submitted.events->Push(event);  // never waits for the reader
  }
  submitted.events->Push(Finished(FinishReason::kLength));
  // The server is done with it before the client reads a byte.
  EXPECT_EQ(world_.WaitForRecord(0).completion_tokens, n_events);
  v1::CompletionChunk chunk;
  int tokens = 0, chunks = 0;
  while (reader->Read(&chunk)) {
    tokens += chunk.choice().token_ids_size();
    ++chunks;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, n_events);
  EXPECT_LT(chunks, n_events) << "what was not read should have been merged";
}

TEST_F(GrpcTest, FiftyStreamsAtOnce) {
  world_.engine.AnswerWith(Encode("The quick brown fox jumps over the lazy dog."));
  v1::CompletionResponse expected;
  grpc::ClientContext context;
  ASSERT_TRUE(Complete(Ask("x", 200), &expected, &context).ok());
  std::vector<std::thread> clients;
  std::atomic<int> good{0};
  for (int i = 0; i < 50; ++i) {
    clients.emplace_back([&] {
      grpc::ClientContext streaming;
      auto reader = v1::Completions::NewStub(channel_)->StreamCompletion(&streaming, Ask("x", 200));
      v1::CompletionChunk chunk;
      std::string text;
      while (reader->Read(&chunk)) text += chunk.choice().text();
      if (reader->Finish().ok() && text == expected.choices(0).text()) ++good;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(good, 50);
}

TEST_F(GrpcTest, CancellationsAtRandomMomentsLeaveNothing) {
  world_.engine.on_submit = [this](const Submitted& s) { world_.engine.Play(s, {300, 301, 302}); };
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([this, i] {
      for (int n = 0; n < 25; ++n) {
        grpc::ClientContext context;
        auto reader = v1::Completions::NewStub(channel_)->StreamCompletion(&context, Ask("x", 500));
        v1::CompletionChunk chunk;
        for (int reads = 0; reads < (i + n) % 5; ++reads) reader->Read(&chunk);
        context.TryCancel();
        reader->Finish();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  server_->Stop(absl::Now() + absl::Seconds(30));
  EXPECT_EQ(server_->calls_in_flight(), 0);
}

TEST_F(GrpcTest, StopCancelsWhatTheDeadlineLeaves) {
  grpc::ClientContext context;
  auto reader = v1::Completions::NewStub(channel_)->StreamCompletion(&context, Ask("x", 100));
  const RequestId id = world_.engine.WaitForSubmit(0).events->id();
  EXPECT_EQ(server_->calls_in_flight(), 1);
  server_->Stop(absl::Now());
  EXPECT_TRUE(world_.engine.WaitForCancel(id));
  EXPECT_FALSE(reader->Finish().ok());
  EXPECT_EQ(server_->calls_in_flight(), 0);
}

TEST_F(GrpcTest, HealthTellsEachServiceAndItsChanges) {
  auto stub = grpc::health::v1::Health::NewStub(channel_);
  const auto check = [&](const std::string& service, HealthCheckResponse* response) {
    HealthCheckRequest request;
    request.set_service(service);
    grpc::ClientContext context;
    return stub->Check(&context, request, response);
  };
  HealthCheckResponse response;
  for (const char* service : {"", "t6.v1.Chat", "t6.v1.Completions", "t6.v1.Models", "t6.v1.Tokenizer"}) {
    ASSERT_TRUE(check(service, &response).ok()) << service;
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  }
  EXPECT_EQ(check("t6.v1.Nothing", &response).error_code(), grpc::StatusCode::NOT_FOUND);

  grpc::ClientContext context;
  auto watch = stub->Watch(&context, {});
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_->SetServing(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  ASSERT_TRUE(check("", &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  // A watch does not hold up the end.
  server_->Stop(absl::Now() + absl::Seconds(30));
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

// gRPC's own client keeps the trailer for its balancers: tests/e2e/test_load_reports.py reads it from the
// wire.
TEST_F(GrpcTest, TheTrailerIsALoadReport) {
  OrcaLoadReport report;
  ASSERT_TRUE(report.ParseFromString(LoadTrailer(admin_)));
  EXPECT_EQ(report.application_utilization(), 1.25);
  EXPECT_EQ(report.rps_fractional(), 12.5);
  EXPECT_EQ(report.eps(), 0.5);
  EXPECT_EQ(report.named_metrics().at("num_requests_waiting"), 3);
}

OrcaLoadReportRequest Every(int64_t seconds, int32_t nanos) {
  OrcaLoadReportRequest request;
  request.mutable_report_interval()->set_seconds(seconds);
  request.mutable_report_interval()->set_nanos(nanos);
  return request;
}

TEST_F(GrpcTest, LoadReportsComeOutOfBand) {
  grpc::ClientContext context;
  auto stub = OpenRcaService::NewStub(channel_);
  const absl::Time start = absl::Now();
  auto stream = stub->StreamCoreMetrics(&context, Every(0, 1));  // less than the least: 100 ms
  OrcaLoadReport report;
  ASSERT_TRUE(stream->Read(&report));
  EXPECT_EQ(report.application_utilization(), 1.25);
  EXPECT_EQ(report.named_metrics().at("num_requests_waiting"), 3);
  admin_.waiting = 7;
  ASSERT_TRUE(stream->Read(&report));
  ASSERT_TRUE(stream->Read(&report));
  EXPECT_EQ(report.named_metrics().at("num_requests_waiting"), 7);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(200));
  EXPECT_EQ(server_->calls_in_flight(), 0) << "who watches must not hold up a drain";
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GrpcTest, LoadStreamsEndWithTheServer) {
  auto stub = OpenRcaService::NewStub(channel_);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<OrcaLoadReport>>> streams;
  // Absurd intervals too: they wait for their timer when the end comes.
  for (const OrcaLoadReportRequest& request : {Every(std::numeric_limits<int64_t>::max(), 999'999'999),
                                               Every(-5, -5), Every(0, 0), Every(3600, 0)}) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub->StreamCoreMetrics(contexts.back().get(), request));
    OrcaLoadReport report;
    ASSERT_TRUE(streams.back()->Read(&report));
  }
  server_->Stop(absl::Now() + absl::Seconds(30));
  for (auto& stream : streams) {
    OrcaLoadReport report;
    while (stream->Read(&report)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

TEST_F(GrpcTest, LoadStreamsCancelledAtRandomMomentsLeaveNothing) {
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([this, i] {
      auto stub = OpenRcaService::NewStub(channel_);
      for (int n = 0; n < 25; ++n) {
        grpc::ClientContext context;
        auto stream = stub->StreamCoreMetrics(&context, Every(0, 1));
        OrcaLoadReport report;
        for (int reads = 0; reads < (i + n) % 3; ++reads) stream->Read(&report);
        context.TryCancel();
        stream->Finish();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  server_->Stop(absl::Now() + absl::Seconds(30));
}

// Asks in the wire's bytes, because no package of Debian carries the protocol's headers.
TEST_F(GrpcTest, ReflectionListsTheServices) {
  grpc::GenericStub stub(channel_);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  auto call =
      stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  ASSERT_TRUE(wait());
  const grpc::Slice list_services(std::string("\x3a\x00", 2));  // field 7, ""
  call->Write(grpc::ByteBuffer(&list_services, 1), nullptr);
  ASSERT_TRUE(wait());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(wait());
  grpc::Slice bytes;
  ASSERT_TRUE(answer.DumpToSingleSlice(&bytes).ok());
  const std::string text(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  for (const char* service : {"t6.v1.Chat", "t6.v1.Completions", "t6.v1.Models", "t6.v1.Tokenizer",
                              "grpc.health.v1.Health", "xds.service.orca.v3.OpenRcaService"}) {
    EXPECT_THAT(text, HasSubstr(service));
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
}

TEST_F(GrpcTest, MessagesBeyondTheBoundAreRefused) {
  v1::CompletionResponse response;
  grpc::ClientContext context;
  EXPECT_EQ(Complete(Ask(std::string(17 << 20, 'x'), 1), &response, &context).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(world_.engine.n_submitted(), 0u);
}

TEST_F(GrpcTest, APortInUseIsSaid) {
  GrpcConfig same;
  same.address.port = static_cast<uint16_t>(server_->port());
  const Status status = GrpcServer::Start(same, world_.handlers(), &admin_, &world_.executor).status();
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr(same.address.ToString()), HasSubstr("Address already in use")));
}

TEST_F(GrpcTest, WithKeysEveryMethodButHealthsNeedsOneAndTheTenantReachesTheEngine) {
  const std::string path = testing::TempDir() + "/t6d-grpc-keys-" + std::to_string(getpid());
  // printf %s alpha | sha256sum
  std::ofstream(path) << "acme sha256:8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8\n";
  int refused = 0;
  const auto keys =
      ApiKeys::Load(path, [&](std::string_view transport) { refused += transport == "grpc"; }).value();
  std::filesystem::remove(path);
  Handlers handlers = world_.handlers();
  handlers.keys = keys.get();
  server_ = GrpcServer::Start(config_, handlers, &admin_, &world_.executor).value();
  server_->SetServing(true);
  channel_ = NewChannel();
  world_.engine.AnswerWith(Encode("x"));

  const auto call = [&](const char* authorization) {
    grpc::ClientContext context;
    if (*authorization != 0) context.AddMetadata("authorization", authorization);
    v1::CompletionResponse response;
    return Complete(Ask("x", 1), &response, &context).error_code();
  };
  EXPECT_EQ(call(""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(call("Bearer beta"), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(world_.engine.n_submitted(), 0u);
  EXPECT_EQ(call("Bearer alpha"), grpc::StatusCode::OK);
  EXPECT_EQ(world_.engine.WaitForSubmit(0).request.tenant, TenantPageKey("acme"));
  EXPECT_EQ(world_.WaitForRecord(0).tenant, "acme");

  const auto chat = v1::Chat::NewStub(channel_);
  const auto completions = v1::Completions::NewStub(channel_);
  const auto models = v1::Models::NewStub(channel_);
  const auto tokenizer = v1::Tokenizer::NewStub(channel_);
  const auto unary = [](auto& stub, auto method, auto request, auto response) {
    grpc::ClientContext context;
    return ((*stub).*method)(&context, request, &response).error_code();
  };
  const auto stream = [](auto& stub, const auto& request, auto chunk) {
    grpc::ClientContext context;
    const auto reader = stub->StreamCompletion(&context, request);
    EXPECT_FALSE(reader->Read(&chunk));
    return reader->Finish().error_code();
  };
  const grpc::StatusCode without_key[] = {
      stream(completions, Ask("x", 1), v1::CompletionChunk()),
      stream(chat, v1::ChatCompletionRequest(), v1::ChatCompletionChunk()),
      unary(chat, &v1::Chat::Stub::CreateCompletion, v1::ChatCompletionRequest(),
            v1::ChatCompletionResponse()),
      unary(models, &v1::Models::Stub::List, v1::ListModelsRequest(), v1::ListModelsResponse()),
      unary(models, &v1::Models::Stub::Get, v1::GetModelRequest(), v1::Model()),
      unary(tokenizer, &v1::Tokenizer::Stub::Tokenize, v1::TokenizeRequest(), v1::TokenizeResponse()),
      unary(tokenizer, &v1::Tokenizer::Stub::Detokenize, v1::DetokenizeRequest(), v1::DetokenizeResponse()),
  };
  EXPECT_THAT(without_key, testing::Each(grpc::StatusCode::UNAUTHENTICATED));
  grpc::ClientContext health_context;
  HealthCheckResponse health;
  EXPECT_TRUE(grpc::health::v1::Health::NewStub(channel_)->Check(&health_context, {}, &health).ok());
  EXPECT_EQ(refused, 9);
}

}  // namespace
}  // namespace t6::server
