#include "server/http/openai_requests.h"

#include "server/error_map.h"

namespace t6::server {
namespace {

bool Has(const Json& body, const char* field) { return body.contains(field) && !body[field].is_null(); }

// What both kinds of completion share.
template <typename Request>
StatusOr<ParsedCall<Request>> ParseCall(std::string_view text, int max_depth, Scope scope,
                                        const char* input) {
  T6_ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text, max_depth));
  ParsedCall<Request> call;
  Draft draft;
  T6_RETURN_IF_ERROR(ParseFields(scope, body, "", call.request, draft));
  if (!Has(body, input)) return BadField(input, "\"{}\" is missing", input);
  if (draft.has_stream_options && !draft.shape.stream) {
    return BadField("stream_options", "\"stream_options\" is only allowed with \"stream\": true");
  }
  if (draft.max_tokens && draft.max_completion_tokens && *draft.max_tokens != *draft.max_completion_tokens) {
    return BadField("max_completion_tokens",
                    "\"max_completion_tokens\" = {} and \"max_tokens\" = {} contradict each other",
                    *draft.max_completion_tokens, *draft.max_tokens);
  }
  if (const auto& limit = draft.max_completion_tokens ? draft.max_completion_tokens : draft.max_tokens) {
    call.request.mutable_sampling()->set_max_tokens(*limit);
  }
  call.shape = draft.shape;
  call.shape.return_token_ids = call.request.return_token_ids();
  return call;
}

}  // namespace

StatusOr<ParsedCall<v1::ChatCompletionRequest>> ParseChatRequest(std::string_view body, int max_depth) {
  auto call = ParseCall<v1::ChatCompletionRequest>(body, max_depth, kChat, "messages");
  if (call.ok()) call->shape.logprobs = call->request.logprobs();
  return call;
}

StatusOr<ParsedCall<v1::CompletionRequest>> ParseCompletionRequest(std::string_view body, int max_depth) {
  auto call = ParseCall<v1::CompletionRequest>(body, max_depth, kCompletion, "prompt");
  if (call.ok()) call->shape.logprobs = call->request.has_logprobs();
  return call;
}

StatusOr<v1::TokenizeRequest> ParseTokenizeRequest(std::string_view text, int max_depth) {
  T6_ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text, max_depth));
  v1::TokenizeRequest request;
  Draft draft;
  T6_RETURN_IF_ERROR(ParseFields(kTokenize, body, "", request, draft));
  // The message cannot tell an empty prompt from none.
  if (Has(body, "prompt") == Has(body, "messages")) {
    return BadField("prompt", "exactly one of \"prompt\" and \"messages\" is needed, got {}",
                    Has(body, "prompt") ? "both" : "neither");
  }
  return request;
}

StatusOr<v1::DetokenizeRequest> ParseDetokenizeRequest(std::string_view text, int max_depth) {
  T6_ASSIGN_OR_RETURN(const Json body, ParseJsonObject(text, max_depth));
  v1::DetokenizeRequest request;
  Draft draft;
  T6_RETURN_IF_ERROR(ParseFields(kDetokenize, body, "", request, draft));
  if (!Has(body, "tokens")) return BadField("tokens", "\"tokens\" is missing");
  return request;
}

}  // namespace t6::server
