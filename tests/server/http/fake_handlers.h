// Handlers that do as a test says and remember what they were asked; and an Admin whose state a test sets.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "server/admin.h"
#include "server/executor.h"
#include "server/handlers.h"

namespace t6::server {

// One stream's far end. Results given before they are pulled wait. Thread-safe.
template <typename Chunk>
class StreamControl {
 public:
  using Result = StatusOr<std::optional<Chunk>>;
  using Done = typename StreamingCall<Chunk>::Done;

  explicit StreamControl(Executor* executor) : executor_(executor) {}
  void Give(Result result) {
    absl::MutexLock lock(&mutex_);
    results_.push_back(std::move(result));
    Match();
  }
  void Pull(Done done) {
    absl::MutexLock lock(&mutex_);
    waiting_ = std::move(done);
    Match();
  }
  absl::Notification destroyed;

 private:
  void Match() {
    if (!waiting_ || results_.empty()) return;
    executor_->Post(
        [done = std::exchange(waiting_, nullptr), result = std::move(results_.front())] { done(result); });
    results_.pop_front();
  }
  Executor* const executor_;
  absl::Mutex mutex_;
  std::deque<Result> results_;
  Done waiting_;
};

template <typename Request, typename Response, typename Chunk>
class FakeGeneration : public GenerationHandler<Request, Response, Chunk> {
 public:
  using Control = StreamControl<Chunk>;
  explicit FakeGeneration(Executor* executor)
      : executor(executor), control(std::make_shared<Control>(executor)) {}

  // What a test sets.
  Status refuse;                             // at once, instead of a call
  std::optional<StatusOr<Response>> answer;  // of a unary call; none: it never comes
  // What a test looks at.
  Request request;
  CallContext context;
  absl::Notification asked, unary_destroyed;
  Executor* const executor;
  std::shared_ptr<Control> control;  // of one stream

  StatusOr<std::unique_ptr<StreamingCall<Chunk>>> Stream(const Request& r, const CallContext& c) override {
    Remember(r, c);
    if (!refuse.ok()) return refuse;
    return std::unique_ptr<StreamingCall<Chunk>>(new Call(control));
  }
  StatusOr<std::unique_ptr<UnaryCall>> Create(const Request& r, const CallContext& c,
                                              std::function<void(StatusOr<Response>)> done) override {
    Remember(r, c);
    if (!refuse.ok()) return refuse;
    if (answer.has_value()) executor->Post([done, answer = *answer] { done(answer); });
    return std::unique_ptr<UnaryCall>(new Unary(answer.has_value() ? nullptr : &unary_destroyed));
  }

 private:
  class Call : public StreamingCall<Chunk> {
   public:
    explicit Call(std::shared_ptr<Control> control) : control_(std::move(control)) {}
    ~Call() override {
      if (!control_->destroyed.HasBeenNotified()) control_->destroyed.Notify();
    }
    void Next(typename StreamingCall<Chunk>::Done done) override { control_->Pull(std::move(done)); }
    void Cancel() override {}

   private:
    const std::shared_ptr<Control> control_;
  };
  class Unary : public UnaryCall {
   public:
    explicit Unary(absl::Notification* destroyed) : destroyed_(destroyed) {}
    ~Unary() override {
      if (destroyed_ != nullptr && !destroyed_->HasBeenNotified()) destroyed_->Notify();
    }

   private:
    absl::Notification* const destroyed_;
  };
  void Remember(const Request& r, const CallContext& c) {
    request = r;
    context = c;
    if (!asked.HasBeenNotified()) asked.Notify();
  }
};

using FakeChat =
    FakeGeneration<v1::ChatCompletionRequest, v1::ChatCompletionResponse, v1::ChatCompletionChunk>;
using FakeCompletion = FakeGeneration<v1::CompletionRequest, v1::CompletionResponse, v1::CompletionChunk>;

// One model "org/m1"; text and tokens map byte by byte.
class FakeInfo : public InfoHandler {
 public:
  std::function<void()> while_tokenizing = [] {};
  mutable absl::Notification tokenizes;  // the first one
  mutable std::atomic<int> n_tokenized{0};

  v1::ListModelsResponse ListModels() const override {
    v1::ListModelsResponse list;
    *list.add_models() = Model();
    return list;
  }
  StatusOr<v1::Model> GetModel(const std::string& id) const override {
    if (id != Model().id()) return NotFound("the model \"{}\" does not exist", id);
    return Model();
  }
  StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) const override {
    if (n_tokenized++ == 0) tokenizes.Notify();
    while_tokenizing();
    v1::TokenizeResponse response;
    for (const char c : request.prompt()) response.add_tokens(c);
    response.set_count(response.tokens_size());
    response.set_max_model_len(1024);
    return response;
  }
  StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) const override {
    v1::DetokenizeResponse response;
    for (const int32_t id : request.tokens()) response.mutable_prompt()->push_back(static_cast<char>(id));
    return response;
  }

 private:
  static v1::Model Model() {
    v1::Model model;
    model.set_id("org/m1");
    model.set_created(1700000000);
    model.set_owned_by("t6");
    model.set_max_model_len(1024);
    model.set_variant("t6");
    return model;
  }
};

class FakeAdmin : public Admin {
 public:
  std::atomic<ServingState> now{ServingState::kServing};
  ServingState state() const override { return now; }
  LoadReport Load() const override {
    return {
        .application_utilization = 0.25, .requests_per_second = 12.5, .named = {{"num_requests_waiting", 3}}};
  }
  std::string MetricsText() const override { return "vllm:num_requests_running 0\n"; }
  std::string Version() const override { return "1.2.3"; }
};

}  // namespace t6::server
