#include "clients/cli/bench/grpc_target.h"

#include <fmt/format.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <unordered_set>

#include "clients/cli/connection.h"
#include "t6/v1/chat.grpc.pb.h"
#include "t6/v1/models.grpc.pb.h"
#include "t6/v1/tokenizer.grpc.pb.h"

namespace t6::cli {
namespace {

constexpr int kStreamsPerChannel = 50;
constexpr int kMostChannels = 64;
constexpr int kLargestMessage = 64 << 20;
constexpr std::chrono::seconds kCallTimeout(120);

const char* CodeName(grpc::StatusCode code) {
  constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  return code >= 0 && code < static_cast<int>(std::size(kNames)) ? kNames[code] : "UNKNOWN";
}

// The calls that run; the destructor of their owner waits until there is none.
class Running {
 public:
  void Add(grpc::ClientContext* context) {
    std::lock_guard lock(mutex_);
    contexts_.insert(context);
  }
  void Remove(grpc::ClientContext* context) {
    std::lock_guard lock(mutex_);
    contexts_.erase(context);
    if (contexts_.empty()) none_.notify_all();
  }
  void CancelAll() {
    std::lock_guard lock(mutex_);
    for (grpc::ClientContext* context : contexts_) context->TryCancel();
  }
  void WaitForNone() {
    std::unique_lock lock(mutex_);
    none_.wait(lock, [this] { return contexts_.empty(); });
  }

 private:
  std::mutex mutex_;
  std::condition_variable none_;
  std::unordered_set<grpc::ClientContext*> contexts_;
};

// One streamed request; destroys itself when it is over. Its callbacks come one after the other.
class StreamedCall final : public grpc::ClientReadReactor<v1::ChatCompletionChunk> {
 public:
  StreamedCall(Running* running, Sample sample, std::function<void(Sample)> done)
      : running_(running), sample_(std::move(sample)), done_(std::move(done)) {
    running_->Add(&context);
  }

  void Start(v1::Chat::Stub& stub) {
    stub.async()->StreamCompletion(&context, &request, this);
    StartRead(&chunk_);
    StartCall();
  }

  void OnReadInitialMetadataDone(bool ok) override {
    if (!ok) return;
    const auto& metadata = context.GetServerInitialMetadata();
    if (const auto replica = metadata.find("x-t6-replica"); replica != metadata.end())
      sample_.replica.assign(replica->second.data(), replica->second.size());
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (chunk_.has_usage()) {
      sample_.prompt_tokens = chunk_.usage().prompt_tokens();
      sample_.cached_tokens = chunk_.usage().cached_tokens();
      sample_.completion_tokens = chunk_.usage().completion_tokens();
      complete_ = true;
    }
    if (chunk_.has_choice() && !chunk_.choice().message().content().empty())
      sample_.OnText(BenchClock::now());
    StartRead(&chunk_);
  }

  void OnDone(const grpc::Status& status) override {
    sample_.end = BenchClock::now();
    if (!status.ok()) {
      sample_.error = CodeName(status.error_code());
      sample_.message = status.error_message();
    } else if (!complete_) {
      sample_.error = "INCOMPLETE";
      sample_.message = "the stream ended without its usage";
    }
    done_(std::move(sample_));
    running_->Remove(&context);  // from here on the target may go
    delete this;
  }

  grpc::ClientContext context;
  v1::ChatCompletionRequest request;

 private:
  Running* const running_;
  Sample sample_;
  std::function<void(Sample)> done_;
  v1::ChatCompletionChunk chunk_;
  bool complete_ = false;
};

class GrpcTarget final : public Target {
 public:
  GrpcTarget(std::string address, const std::string& service_config, int most_at_once,
             const BenchRequestOptions& options)
      : address_(std::move(address)), options_(options) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kLargestMessage);
    // Or channels to one address would share one connection.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    if (!service_config.empty()) arguments.SetServiceConfigJSON(service_config);
    const int n = std::clamp((most_at_once + kStreamsPerChannel - 1) / kStreamsPerChannel, 1, kMostChannels);
    for (int i = 0; i < n; ++i) {
      channels_.push_back(grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
      stubs_.push_back(v1::Chat::NewStub(channels_.back()));
    }
  }
  ~GrpcTarget() override {
    running_.CancelAll();
    running_.WaitForNone();
  }

  std::string Describe() const override { return fmt::format("gRPC at {}", address_); }

  std::string Connect(std::string& model) override {
    for (const auto& channel : channels_) {
      if (!Reach(*channel)) return fmt::format("no server answers at {} (gRPC)", address_);
    }
    if (model.empty()) {
      grpc::ClientContext context;
      Prepare(context, kCallTimeout);
      v1::ListModelsResponse models;
      const grpc::Status status = v1::Models::NewStub(channels_[0])->List(&context, {}, &models);
      if (!status.ok()) return fmt::format("{}: {}", CodeName(status.error_code()), status.error_message());
      if (models.models().empty()) return "the server has no model";
      model = models.models(0).id();
    }
    options_.model = model;
    return "";
  }

  std::string CountTokens(const std::string& text, int& tokens) override {
    grpc::ClientContext context;
    Prepare(context, kCallTimeout);
    v1::TokenizeRequest request;
    request.set_model(options_.model);
    request.set_prompt(text);
    v1::TokenizeResponse response;
    const grpc::Status status = v1::Tokenizer::NewStub(channels_[0])->Tokenize(&context, request, &response);
    if (!status.ok()) return fmt::format("{}: {}", CodeName(status.error_code()), status.error_message());
    tokens = response.count();
    return "";
  }

  void Send(const BenchPrompt& prompt, BenchClock::time_point due,
            std::function<void(Sample)> done) override {
    Sample sample;
    sample.due = due;
    sample.document = prompt.document;
    auto* call = new StreamedCall(&running_, std::move(sample), std::move(done));
    Prepare(call->context, options_.timeout);
    if (options_.affinity) call->context.AddMetadata("x-t6-context", prompt.context);
    call->request.set_model(options_.model);
    for (const BenchMessage& message : prompt.messages) {
      v1::ChatMessage* added = call->request.add_messages();
      added->set_role(message.role);
      added->set_content(*message.content);
    }
    v1::SamplingOptions& sampling = *call->request.mutable_sampling();
    sampling.set_max_tokens(options_.max_tokens);
    sampling.set_temperature(options_.temperature);
    sampling.set_seed(options_.seed);
    if (options_.ignore_eos) sampling.set_ignore_eos(true);
    call->Start(*stubs_[next_++ % stubs_.size()]);
  }

  void CancelAll() override { running_.CancelAll(); }

 private:
  void Prepare(grpc::ClientContext& context, std::chrono::duration<double> timeout) const {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::duration_cast<std::chrono::system_clock::duration>(timeout));
    if (!options_.api_key.empty()) context.AddMetadata("authorization", "Bearer " + options_.api_key);
  }

  const std::string address_;
  BenchRequestOptions options_;
  std::vector<std::shared_ptr<grpc::Channel>> channels_;
  std::vector<std::unique_ptr<v1::Chat::Stub>> stubs_;
  size_t next_ = 0;
  Running running_;
};

}  // namespace

std::unique_ptr<Target> MakeGrpcTarget(const std::string& address, const std::string& service_config,
                                       int most_at_once, const BenchRequestOptions& options) {
  return std::make_unique<GrpcTarget>(address, service_config, most_at_once, options);
}

}  // namespace t6::cli
