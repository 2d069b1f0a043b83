// A client for t6d over gRPC. Requests and answers are the messages of proto/t6/v1, whose files say what each
// field means; a field that is not set takes the server's default.
//
// A Client is a connection to one t6d, or to a balancer before several. It connects when it is first used,
// may be used by any number of threads, and outlives the streams it made. Calls block. Errors come as
// absl::Status, see status.h; nothing throws.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "t6/v1/chat.grpc.pb.h"
#include "t6/v1/completions.grpc.pb.h"
#include "t6/v1/models.grpc.pb.h"
#include "t6/v1/tokenizer.grpc.pb.h"
#include "t6client/options.h"
#include "t6client/status.h"
#include "t6client/stream.h"

namespace t6::client {

using ChatStream = Stream<v1::ChatCompletionChunk>;
using CompletionStream = Stream<v1::CompletionChunk>;

class Client {
 public:
  // `target`: HOST:PORT, or any name that gRPC resolves.
  explicit Client(const std::string& target, ClientOptions options = {});
  ~Client();
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;

  // Answers a conversation, through the model's chat template.
  absl::StatusOr<v1::ChatCompletionResponse> Chat(const v1::ChatCompletionRequest& request,
                                                  const CallOptions& options = {}) const;
  ChatStream StreamChat(const v1::ChatCompletionRequest& request, const CallOptions& options = {}) const;
  // Calls `take` with each piece until it returns false, which cancels the rest and is no error.
  absl::Status StreamChat(const v1::ChatCompletionRequest& request,
                          const std::function<bool(const v1::ChatCompletionChunk&)>& take,
                          const CallOptions& options = {}) const;

  // Continues prompts, up to 64: a choice for each. Pieces of several are interleaved; each names its choice.
  absl::StatusOr<v1::CompletionResponse> Complete(const v1::CompletionRequest& request,
                                                  const CallOptions& options = {}) const;
  CompletionStream StreamComplete(const v1::CompletionRequest& request,
                                  const CallOptions& options = {}) const;

  absl::StatusOr<std::vector<v1::Model>> Models(const CallOptions& options = {}) const;
  absl::StatusOr<v1::Model> GetModel(const std::string& id, const CallOptions& options = {}) const;

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                const CallOptions& options = {}) const;
  absl::StatusOr<std::string> Detokenize(std::span<const int32_t> tokens,
                                         const CallOptions& options = {}) const;

  // Whether the server, or one of its services ("t6.v1.Chat"), takes requests.
  absl::StatusOr<bool> IsServing(const std::string& service = "", const CallOptions& options = {}) const;

  // Waits until the server can be reached; false if it could not in time.
  bool WaitForConnected(std::chrono::milliseconds timeout) const;

  // For stubs of your own.
  const std::shared_ptr<grpc::Channel>& channel() const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

void AddMessage(v1::ChatCompletionRequest& request, std::string_view role, std::string_view content);

// Of the first choice; empty if there is none.
const std::string& TextOf(const v1::ChatCompletionResponse& response);
const std::string& TextOf(const v1::ChatCompletionChunk& chunk);

}  // namespace t6::client
