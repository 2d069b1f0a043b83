// The services of proto/t6/v1, each a line per RPC over the shared handlers. Thread-safe.
#pragma once

#include "server/grpc/answer_on.h"
#include "server/grpc/grpc_call.h"
#include "server/grpc/reactors.h"
#include "t6/v1/chat.grpc.pb.h"
#include "t6/v1/completions.grpc.pb.h"
#include "t6/v1/models.grpc.pb.h"
#include "t6/v1/tokenizer.grpc.pb.h"

namespace t6::server {

class ChatService final : public v1::Chat::CallbackService {
 public:
  explicit ChatService(const GrpcDeps* deps) : deps_(*deps) {}

  grpc::ServerUnaryReactor* CreateCompletion(grpc::CallbackServerContext* context,
                                             const v1::ChatCompletionRequest* request,
                                             v1::ChatCompletionResponse* response) override {
    return new UnaryReactor(deps_, deps_.handlers.chat, context, request, response);
  }
  grpc::ServerWriteReactor<v1::ChatCompletionChunk>* StreamCompletion(
      grpc::CallbackServerContext* context, const v1::ChatCompletionRequest* request) override {
    return new StreamReactor<ChatHandler, v1::ChatCompletionRequest, v1::ChatCompletionChunk>(
        deps_, deps_.handlers.chat, context, request);
  }

 private:
  const GrpcDeps& deps_;
};

class CompletionsService final : public v1::Completions::CallbackService {
 public:
  explicit CompletionsService(const GrpcDeps* deps) : deps_(*deps) {}

  grpc::ServerUnaryReactor* CreateCompletion(grpc::CallbackServerContext* context,
                                             const v1::CompletionRequest* request,
                                             v1::CompletionResponse* response) override {
    return new UnaryReactor(deps_, deps_.handlers.completion, context, request, response);
  }
  grpc::ServerWriteReactor<v1::CompletionChunk>* StreamCompletion(
      grpc::CallbackServerContext* context, const v1::CompletionRequest* request) override {
    return new StreamReactor<CompletionHandler, v1::CompletionRequest, v1::CompletionChunk>(
        deps_, deps_.handlers.completion, context, request);
  }

 private:
  const GrpcDeps& deps_;
};

class ModelsService final : public v1::Models::CallbackService {
 public:
  explicit ModelsService(const GrpcDeps* deps) : deps_(*deps) {}

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                 v1::ListModelsResponse* response) override {
    return AnswerOn(*deps_.executor, deps_, context, request, response,
                    [info = deps_.handlers.info](const v1::ListModelsRequest&) {
                      return StatusOr<v1::ListModelsResponse>(info->ListModels());
                    });
  }
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const v1::GetModelRequest* request,
                                v1::Model* response) override {
    return AnswerOn(*deps_.executor, deps_, context, request, response,
                    [info = deps_.handlers.info](const v1::GetModelRequest& asked) {
                      return info->GetModel(asked.id());
                    });
  }

 private:
  const GrpcDeps& deps_;
};

class TokenizerService final : public v1::Tokenizer::CallbackService {
 public:
  explicit TokenizerService(const GrpcDeps* deps) : deps_(*deps) {}

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return AnswerOn(
        *deps_.handlers.texts, deps_, context, request, response,
        [info = deps_.handlers.info](const v1::TokenizeRequest& asked) { return info->Tokenize(asked); });
  }
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return AnswerOn(
        *deps_.handlers.texts, deps_, context, request, response,
        [info = deps_.handlers.info](const v1::DetokenizeRequest& asked) { return info->Detokenize(asked); });
  }

 private:
  const GrpcDeps& deps_;
};

}  // namespace t6::server
