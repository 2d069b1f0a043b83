#include "t6client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <utility>

#include "grpc/health/v1/health.grpc.pb.h"

namespace t6::client {
namespace {

// The most that the server takes. What is longer than this buffer is not retried, and must not be: it is
// always refused.
constexpr int kLargestRequest = 16 << 20;
constexpr int kLargestReply = 64 << 20;

std::shared_ptr<grpc::Channel> NewChannel(const std::string& target, const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(options.service_config);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, options.retry ? 1 : 0);
  arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, kLargestRequest);
  arguments.SetMaxReceiveMessageSize(kLargestReply);
  // A server that vanished without a word is noticed while a call waits for it.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetUserAgentPrefix("t6client-cpp/" T6CLIENT_VERSION);
  return grpc::CreateCustomChannel(
      target, options.credentials != nullptr ? options.credentials : grpc::InsecureChannelCredentials(),
      arguments);
}

bool IsVisible(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char letter) { return letter > ' ' && letter <= '~'; });
}

}  // namespace

struct Client::Impl {
  Impl(const std::string& target, ClientOptions given)
      : options(std::move(given)), channel(NewChannel(target, options)) {}

  // Of the call's metadata and deadline; INVALID_ARGUMENT names what cannot be sent.
  absl::Status Prepare(const CallOptions& call, grpc::ClientContext& context) const {
    if (!IsVisible(options.api_key)) {
      return absl::InvalidArgumentError("api_key must be visible ASCII characters");
    }
    if (!options.api_key.empty()) context.AddMetadata("authorization", "Bearer " + options.api_key);
    const std::string& affinity = call.affinity.empty() ? options.affinity : call.affinity;
    for (const auto& [header, name, value] : {std::tuple("x-t6-context", "affinity", affinity),
                                              {"x-request-id", "request_id", call.request_id}}) {
      if (!IsVisible(value)) {
        return absl::InvalidArgumentError(std::string(name) + " must be visible ASCII characters, got '" +
                                          value + "'");
      }
      if (!value.empty()) context.AddMetadata(header, value);
    }
    if (const auto timeout = call.timeout ? call.timeout : options.timeout) {
      context.set_deadline(std::chrono::system_clock::now() + *timeout);
    }
    context.set_wait_for_ready(call.wait_for_ready);
    return absl::OkStatus();
  }

  template <typename Stub, typename Request, typename Reply>
  absl::StatusOr<Reply> Unary(const std::unique_ptr<Stub>& stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
                              const Request& request, const CallOptions& call_options) const {
    Call call(call_options.stop);
    absl::Status status = Prepare(call_options, call.context);
    if (!status.ok()) return status;
    Reply reply;
    status = ToStatus((stub.get()->*method)(&call.context, request, &reply), call.context);
    if (!status.ok()) return status;
    return reply;
  }

  template <typename Chunk, typename Stub, typename Request>
  Stream<Chunk> Streaming(const std::unique_ptr<Stub>& stub, const Request& request,
                          const CallOptions& call_options) const {
    auto call = std::make_unique<Call>(call_options.stop);
    absl::Status status = Prepare(call_options, call->context);
    if (!status.ok()) return Stream<Chunk>(std::move(status));
    auto reader = stub->StreamCompletion(&call->context, request);
    return Stream<Chunk>(std::move(call), std::move(reader));
  }

  const ClientOptions options;
  const std::shared_ptr<grpc::Channel> channel;
  const std::unique_ptr<v1::Chat::Stub> chat = v1::Chat::NewStub(channel);
  const std::unique_ptr<v1::Completions::Stub> completions = v1::Completions::NewStub(channel);
  const std::unique_ptr<v1::Models::Stub> models = v1::Models::NewStub(channel);
  const std::unique_ptr<v1::Tokenizer::Stub> tokenizer = v1::Tokenizer::NewStub(channel);
  const std::unique_ptr<grpc::health::v1::Health::Stub> health = grpc::health::v1::Health::NewStub(channel);
};

Client::Client(const std::string& target, ClientOptions options)
    : impl_(std::make_unique<const Impl>(target, std::move(options))) {}
Client::~Client() = default;
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;

absl::StatusOr<v1::ChatCompletionResponse> Client::Chat(const v1::ChatCompletionRequest& request,
                                                        const CallOptions& options) const {
  return impl_->Unary(impl_->chat, &v1::Chat::Stub::CreateCompletion, request, options);
}

ChatStream Client::StreamChat(const v1::ChatCompletionRequest& request, const CallOptions& options) const {
  return impl_->Streaming<v1::ChatCompletionChunk>(impl_->chat, request, options);
}

absl::Status Client::StreamChat(const v1::ChatCompletionRequest& request,
                                const std::function<bool(const v1::ChatCompletionChunk&)>& take,
                                const CallOptions& options) const {
  ChatStream stream = StreamChat(request, options);
  for (const v1::ChatCompletionChunk& chunk : stream) {
    if (!take(chunk)) return absl::OkStatus();
  }
  return stream.status();
}

absl::StatusOr<v1::CompletionResponse> Client::Complete(const v1::CompletionRequest& request,
                                                        const CallOptions& options) const {
  return impl_->Unary(impl_->completions, &v1::Completions::Stub::CreateCompletion, request, options);
}

CompletionStream Client::StreamComplete(const v1::CompletionRequest& request,
                                        const CallOptions& options) const {
  return impl_->Streaming<v1::CompletionChunk>(impl_->completions, request, options);
}

absl::StatusOr<std::vector<v1::Model>> Client::Models(const CallOptions& options) const {
  auto reply = impl_->Unary(impl_->models, &v1::Models::Stub::List, v1::ListModelsRequest(), options);
  if (!reply.ok()) return reply.status();
  return std::vector<v1::Model>(reply->models().begin(), reply->models().end());
}

absl::StatusOr<v1::Model> Client::GetModel(const std::string& id, const CallOptions& options) const {
  v1::GetModelRequest request;
  request.set_id(id);
  return impl_->Unary(impl_->models, &v1::Models::Stub::Get, request, options);
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request,
                                                      const CallOptions& options) const {
  return impl_->Unary(impl_->tokenizer, &v1::Tokenizer::Stub::Tokenize, request, options);
}

absl::StatusOr<std::string> Client::Detokenize(std::span<const int32_t> tokens,
                                               const CallOptions& options) const {
  v1::DetokenizeRequest request;
  request.mutable_tokens()->Add(tokens.begin(), tokens.end());
  auto reply = impl_->Unary(impl_->tokenizer, &v1::Tokenizer::Stub::Detokenize, request, options);
  if (!reply.ok()) return reply.status();
  return std::move(*reply->mutable_prompt());
}

absl::StatusOr<bool> Client::IsServing(const std::string& service, const CallOptions& options) const {
  using grpc::health::v1::HealthCheckResponse;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  const auto reply = impl_->Unary(impl_->health, &grpc::health::v1::Health::Stub::Check, request, options);
  if (!reply.ok()) return reply.status();
  return reply->status() == HealthCheckResponse::SERVING;
}

bool Client::WaitForConnected(std::chrono::milliseconds timeout) const {
  return impl_->channel->WaitForConnected(std::chrono::system_clock::now() + timeout);
}

const std::shared_ptr<grpc::Channel>& Client::channel() const { return impl_->channel; }

void AddMessage(v1::ChatCompletionRequest& request, std::string_view role, std::string_view content) {
  v1::ChatMessage& message = *request.add_messages();
  message.set_role(std::string(role));
  message.set_content(std::string(content));
}

const std::string& TextOf(const v1::ChatCompletionResponse& response) {
  if (response.choices().empty()) return v1::ChatMessage::default_instance().content();
  return response.choices(0).message().content();
}

const std::string& TextOf(const v1::ChatCompletionChunk& chunk) { return chunk.choice().message().content(); }

}  // namespace t6::client
