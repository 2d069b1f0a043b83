#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/auth.h"
#include "t6/v1/chat.grpc.pb.h"
#include "t6/v1/models.grpc.pb.h"
#include "t6/v1/tokenizer.grpc.pb.h"
#include "tests/server/grpc_fixture.h"

namespace t6::server {
namespace {

using grpc::health::v1::HealthCheckResponse;
using testing::HasSubstr;

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
      "initialBackoff": "3600s", "maxBackoff": "3600s", "backoffMultiplier": 1,
      "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]})");
  const auto channel = NewChannel(arguments);
  v1::CompletionResponse response;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));  // before the client's own backoff
  const grpc::Status status =
      v1::Completions::NewStub(channel)->CreateCompletion(&context, Ask("x", 1), &response);
  EXPECT_TRUE(status.ok()) << status.error_message() << ": the hint was not used";
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

TEST_F(GrpcTest, TheDeadlineReachesTheEngine) {
  world_.engine.AnswerWith({9});
  v1::CompletionResponse response;
  grpc::ClientContext context, patient;
  const absl::Time deadline = absl::Now() + absl::Hours(10);
  context.set_deadline(absl::ToChronoTime(deadline));
  ASSERT_TRUE(Complete(Ask("x", 1), &response, &context).ok());
  // It travels as what is left of it, which gRPC rounds up: the way there is added.
  EXPECT_GE(world_.engine.WaitForSubmit(0).request.deadline, deadline - absl::Seconds(1));
  EXPECT_LT(world_.engine.WaitForSubmit(0).request.deadline, deadline + absl::Hours(1));
  // A call without one gets none.
  ASSERT_TRUE(Complete(Ask("x", 1), &response, &patient).ok());
  EXPECT_EQ(world_.engine.WaitForSubmit(1).request.deadline, absl::InfiniteFuture());
}

TEST_F(GrpcTest, TheDeadlineEndsTheCallAndItsRequest) {
  // Each twice as long as the last, until one is long enough to reach the engine.
  for (auto limit = std::chrono::milliseconds(100); world_.engine.n_submitted() == 0; limit *= 2) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + limit);
    v1::CompletionResponse response;
    EXPECT_EQ(Complete(Ask("x", 5), &response, &context).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  EXPECT_TRUE(world_.engine.WaitForCancel(world_.engine.WaitForSubmit(0).events->id()));
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
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // or its window might grow until it holds them all
  const auto channel = NewChannel(arguments);
  grpc::ClientContext context;
  auto reader = v1::Completions::NewStub(channel)->StreamCompletion(&context, request);
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
  server_->Stop(absl::Now() + kPatience);
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

TEST_F(GrpcTest, MessagesBeyondTheBoundAreRefused) {
  v1::CompletionResponse response;
  grpc::ClientContext context;
  EXPECT_EQ(Complete(Ask(std::string(17 << 20, 'x'), 1), &response, &context).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(world_.engine.n_submitted(), 0u);
}

TEST_F(GrpcTest, WhatCallsHoldTogetherIsBounded) {
  config_.max_message_bytes = 1 << 20;
  config_.max_large_messages = 2;
  Restart();
  const auto open = [&](grpc::ClientContext* context, const std::string& text) {
    return v1::Completions::NewStub(channel_)->StreamCompletion(context, Ask(text, 1));
  };
  // Longer than any text that is looked at, so that they wait in line behind the first one's submission.
  absl::Notification released;
  world_.engine.on_submit = [&](const Submitted&) { released.WaitForNotification(); };
  grpc::ClientContext contexts[3];
  std::vector<std::unique_ptr<grpc::ClientReader<v1::CompletionChunk>>> held;
  for (int i = 0; i < 2; ++i) held.push_back(open(&contexts[i], "x"));
  world_.engine.WaitForSubmit(1);  // both threads of the handlers wait
  grpc::ClientContext large[3];
  for (int i = 0; i < 2; ++i) held.push_back(open(&large[i], std::string(1'000'000, 'x')));
  while (server_->calls_in_flight() < 4) std::this_thread::yield();
  v1::CompletionChunk chunk;
  auto refused = open(&large[2], std::string(1'000'000, 'x'));
  EXPECT_FALSE(refused->Read(&chunk));
  EXPECT_EQ(refused->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  released.Notify();
  for (grpc::ClientContext& context : contexts) context.TryCancel();
  for (int i = 2; i < 4; ++i) {
    EXPECT_FALSE(held[i]->Read(&chunk));
    EXPECT_EQ(held[i]->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << "longer than the context";
  }
  for (int i = 0; i < 2; ++i) held[i]->Finish();
  while (server_->calls_in_flight() > 0) std::this_thread::yield();
}

TEST_F(GrpcTest, CallsAreBounded) {
  config_.max_calls = 2;
  Restart();
  std::vector<std::unique_ptr<grpc::ClientReader<v1::CompletionChunk>>> running;
  grpc::ClientContext contexts[2], third;
  for (int i = 0; i < 2; ++i) {
    running.push_back(v1::Completions::NewStub(channel_)->StreamCompletion(&contexts[i], Ask("x", 1)));
    world_.engine.WaitForSubmit(static_cast<size_t>(i));
  }
  v1::CompletionResponse response;
  EXPECT_EQ(Complete(Ask("x", 1), &response, &third).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(world_.engine.n_submitted(), 2u);
  for (int i = 0; i < 2; ++i) {
    contexts[i].TryCancel();
    running[static_cast<size_t>(i)]->Finish();
  }
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
  Restart(handlers);
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
