// The gRPC server over the real handlers and a fake engine, and a channel to it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>

#include "server/grpc/grpc_server.h"
#include "t6/v1/completions.grpc.pb.h"
#include "tests/server/served_world.h"

namespace t6::server {

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

inline v1::CompletionRequest Ask(const std::string& text, int max_tokens) {
  v1::CompletionRequest request;
  request.add_prompts()->set_text(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

class GrpcTest : public testing::Test {
 protected:
  GrpcTest() {
    config_.address.port = 0;
    Restart();
  }

  // With config_ as it is now.
  void Restart() { Restart(world_.handlers()); }
  void Restart(const Handlers& handlers) {
    server_ = GrpcServer::Start(config_, handlers, &admin_, &world_.executor).value();
    server_->SetServing(true);
    channel_ = NewChannel();
  }

  std::shared_ptr<grpc::Channel> NewChannel(grpc::ChannelArguments arguments = {}) {
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(-1);
    // For one attempt to connect: twenty seconds, gRPC's own, pass while a machine stands still.
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                     static_cast<int>(absl::ToInt64Milliseconds(kPatience)));
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

}  // namespace t6::server
