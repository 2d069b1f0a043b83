// A t6.v1.Chat in this process that does what a script says, call by call, and notes what it saw.
// Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "t6/v1/chat.grpc.pb.h"
#include "tests/support/patience.h"

namespace t6::client {

// Ends a call with an error after `chunks` pieces of an answer; `endless`: goes on until it is cancelled.
struct Action {
  grpc::StatusCode code = grpc::StatusCode::OK;
  std::string pushback = "";  // grpc-retry-pushback-ms; empty: none
  int chunks = 0;
  bool endless = false;
};

struct Seen {
  std::chrono::steady_clock::time_point at;
  std::map<std::string, std::string> metadata;
};

// Answers "yes" once the script is used up.
class ScriptedServer final : public v1::Chat::Service {
 public:
  explicit ScriptedServer(std::deque<Action> script = {}) : script_(std::move(script)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~ScriptedServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string target() const { return "127.0.0.1:" + std::to_string(port_); }
  std::vector<Seen> seen() const {
    std::lock_guard lock(mutex_);
    return seen_;
  }
  // Whether an endless call was cancelled, within a while.
  bool WaitForCancelled() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoSeconds(kPatience), [this] { return cancelled_; });
  }

 private:
  grpc::Status CreateCompletion(grpc::ServerContext* context, const v1::ChatCompletionRequest* request,
                                v1::ChatCompletionResponse* response) override {
    const Action action = Next(context);
    if (action.endless) return WaitUntilCancelled(context);
    if (action.code != grpc::StatusCode::OK) return Refuse(action, context);
    response->add_choices()->mutable_message()->set_content("yes");
    return grpc::Status::OK;
  }

  grpc::Status StreamCompletion(grpc::ServerContext* context, const v1::ChatCompletionRequest* request,
                                grpc::ServerWriter<v1::ChatCompletionChunk>* writer) override {
    const Action action = Next(context);
    v1::ChatCompletionChunk chunk;
    chunk.mutable_choice()->mutable_message()->set_content("yes");
    const int chunks = action.code == grpc::StatusCode::OK && !action.endless ? 2 : action.chunks;
    for (int i = 0; i < chunks; ++i) writer->Write(chunk);
    if (action.endless) return WaitUntilCancelled(context);
    return action.code == grpc::StatusCode::OK ? grpc::Status::OK : Refuse(action, context);
  }

  Action Next(grpc::ServerContext* context) {
    Seen seen{std::chrono::steady_clock::now(), {}};
    for (const auto& [key, value] : context->client_metadata()) {
      seen.metadata.emplace(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
    }
    std::lock_guard lock(mutex_);
    seen_.push_back(std::move(seen));
    if (script_.empty()) return {};
    const Action action = script_.front();
    script_.pop_front();
    return action;
  }

  static grpc::Status Refuse(const Action& action, grpc::ServerContext* context) {
    if (!action.pushback.empty()) context->AddTrailingMetadata("grpc-retry-pushback-ms", action.pushback);
    context->AddTrailingMetadata("t6-error-param", "temperature");
    context->AddTrailingMetadata("x-request-id", "req-1");
    return {action.code, "as the script says"};
  }

  grpc::Status WaitUntilCancelled(grpc::ServerContext* context) {
    std::unique_lock lock(mutex_);
    while (!context->IsCancelled()) changed_.wait_for(lock, std::chrono::milliseconds(5));
    cancelled_ = true;
    changed_.notify_all();
    return grpc::Status::CANCELLED;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Action> script_;
  std::vector<Seen> seen_;
  bool cancelled_ = false;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace t6::client
