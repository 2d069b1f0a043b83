// HTTP JSON -> proto, strictly, by the table in request_fields.h. Checks syntax, types and what only JSON can
// say wrong; values (ranges, lengths, names) are the handlers' to check, for gRPC as for HTTP. Pure
// functions.
#pragma once

#include <string_view>

#include "engine/base/status.h"
#include "server/http/request_fields.h"
#include "t6/v1/chat.pb.h"
#include "t6/v1/completions.pb.h"
#include "t6/v1/tokenizer.pb.h"

namespace t6::server {

template <typename Request>
struct ParsedCall {
  Request request;
  ReplyShape shape;
};

StatusOr<ParsedCall<v1::ChatCompletionRequest>> ParseChatRequest(std::string_view body, int max_depth);
StatusOr<ParsedCall<v1::CompletionRequest>> ParseCompletionRequest(std::string_view body, int max_depth);
StatusOr<v1::TokenizeRequest> ParseTokenizeRequest(std::string_view body, int max_depth);
StatusOr<v1::DetokenizeRequest> ParseDetokenizeRequest(std::string_view body, int max_depth);

}  // namespace t6::server
