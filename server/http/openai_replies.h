// Proto -> OpenAI's JSON, whole or as the events of a stream. Key order is OpenAI's. Floats read back as
// the same float32; text that is not UTF-8 is repaired. Values; one thread at a time.
#pragma once

#include <map>
#include <string>

#include "engine/base/status.h"
#include "server/http/request_fields.h"
#include "t6/v1/chat.pb.h"
#include "t6/v1/completions.pb.h"
#include "t6/v1/models.pb.h"
#include "t6/v1/tokenizer.pb.h"

namespace t6::server {

std::string ToJson(const v1::ChatCompletionResponse& response, const ReplyShape& shape);
std::string ToJson(const v1::CompletionResponse& response, const ReplyShape& shape);
std::string ToJson(const v1::ListModelsResponse& models);
std::string ToJson(const v1::Model& model);
std::string ToJson(const v1::TokenizeResponse& response);
std::string ToJson(const v1::DetokenizeResponse& response);

// {"error": {...}}; an empty param or code is null.
std::string ErrorJson(std::string_view message, std::string_view type, std::string_view param,
                      std::string_view code);
std::string ErrorJson(const Status& status);

// One chunk -> its server-sent events, ready to write; none for a chunk that the client did not ask for.
class ChatEvents {
 public:
  explicit ChatEvents(const ReplyShape& shape) : shape_(shape) {}
  std::string Write(const v1::ChatCompletionChunk& chunk);

 private:
  ReplyShape shape_;
};

class CompletionEvents {
 public:
  explicit CompletionEvents(const ReplyShape& shape) : shape_(shape) {}
  std::string Write(const v1::CompletionChunk& chunk);

 private:
  ReplyShape shape_;
  std::map<int, int64_t> text_offset_;  // by choice: where its next token starts
};

}  // namespace t6::server
