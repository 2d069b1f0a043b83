// The handlers that gRPC and HTTP share: validate, template, tokenise, submit, and turn token events into
// text. Thread-safe. Errors carry the offending value; error_map.h says what they become on the wire, and a
// status payload (error_map.h: SetErrorParam) names the request's field at fault.
#pragma once

#include <functional>
#include <memory>

#include "engine/base/status.h"
#include "server/call.h"
#include "t6/v1/chat.pb.h"
#include "t6/v1/completions.pb.h"
#include "t6/v1/models.pb.h"
#include "t6/v1/tokenizer.pb.h"

namespace t6::server {

template <typename Request, typename Response, typename Chunk>
class GenerationHandler {
 public:
  virtual ~GenerationHandler() = default;
  // What is wrong with the request, or that the queue is full, comes back at once; the rest through the call.
  virtual StatusOr<std::unique_ptr<StreamingCall<Chunk>>> Stream(const Request& request,
                                                                 const CallContext& context) = 0;
  // The whole answer; `done` is called exactly once, on the server's executor, unless the call is destroyed
  // before.
  virtual StatusOr<std::unique_ptr<UnaryCall>> Create(const Request& request, const CallContext& context,
                                                      std::function<void(StatusOr<Response>)> done) = 0;
};

using ChatHandler =
    GenerationHandler<v1::ChatCompletionRequest, v1::ChatCompletionResponse, v1::ChatCompletionChunk>;
using CompletionHandler =
    GenerationHandler<v1::CompletionRequest, v1::CompletionResponse, v1::CompletionChunk>;

// Models and the tokenizer answer at once.
class InfoHandler {
 public:
  virtual ~InfoHandler() = default;
  virtual v1::ListModelsResponse ListModels() const = 0;
  virtual StatusOr<v1::Model> GetModel(const std::string& id) const = 0;
  virtual StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) const = 0;
  virtual StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) const = 0;
};

class ApiKeys;
class Executor;

// Everything a transport needs. All of it outlives the transports.
struct Handlers {
  ChatHandler* chat = nullptr;
  CompletionHandler* completion = nullptr;
  InfoHandler* info = nullptr;
  // Where requests are parsed, templated and tokenised, so that the text of running streams never waits for
  // it: `prompts` for what a model's context bounds, `texts` for the tokenizer's own routes, a megabyte of
  // which takes a second.
  Executor* prompts = nullptr;
  Executor* texts = nullptr;
  const ApiKeys* keys = nullptr;  // none: everybody may call
};

}  // namespace t6::server
