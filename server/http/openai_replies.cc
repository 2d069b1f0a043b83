#include "server/http/openai_replies.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "server/error_map.h"
#include "server/http/sse.h"

namespace t6::server {
namespace {

using OrderedJson = nlohmann::ordered_json;

std::string Dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

// By way of the float's shortest text, or 0.1 would print with the 17 digits of a double.
OrderedJson Number(float value) {
  // What OpenAI writes for a token that cannot be; JSON has no infinity.
  if (!std::isfinite(value)) return -9999.0;
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  double shortest = 0;
  std::from_chars(text, end, shortest);
  return shortest;
}

OrderedJson Bytes(const std::string& bytes) {
  OrderedJson list = OrderedJson::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

template <typename Ids>
OrderedJson IdList(const Ids& ids) {
  OrderedJson list = OrderedJson::array();
  for (const int32_t id : ids) list.push_back(id);
  return list;
}

OrderedJson FinishReasonJson(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return nullptr;
  }
}

template <typename Choice>
OrderedJson StopReasonJson(const Choice& choice) {
  if (choice.stop_reason_case() == Choice::kStopString) return choice.stop_string();
  if (choice.stop_reason_case() == Choice::kStopTokenId) return choice.stop_token_id();
  return nullptr;
}

OrderedJson UsageJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"total_tokens", usage.total_tokens()},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens()}}},
          {"t6", {{"cached_tokens_by_tier", {{"device", usage.cached_tokens()}}}}}};
}

template <typename Choice>
OrderedJson ChatLogprobs(const Choice& choice) {
  OrderedJson content = OrderedJson::array();
  for (const v1::TokenLogprob& token : choice.logprobs()) {
    OrderedJson top = OrderedJson::array();
    for (const v1::TopLogprob& other : token.top()) {
      top.push_back(
          {{"token", other.token()}, {"logprob", Number(other.logprob())}, {"bytes", Bytes(other.bytes())}});
    }
    content.push_back({{"token", token.token()},
                       {"logprob", Number(token.logprob())},
                       {"bytes", Bytes(token.bytes())},
                       {"top_logprobs", std::move(top)}});
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// Characters that start in `bytes`; over all of a text's tokens this counts each character once.
int64_t CharacterStarts(const std::string& bytes) {
  int64_t n = 0;
  for (const char c : bytes) n += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return n;
}

OrderedJson CompletionLogprobs(const v1::CompletionChoice& choice, int64_t* offset) {
  OrderedJson tokens = OrderedJson::array(), logprobs = OrderedJson::array(), tops = OrderedJson::array(),
              offsets = OrderedJson::array();
  for (const v1::TokenLogprob& token : choice.logprobs()) {
    tokens.push_back(token.token());
    offsets.push_back(*offset);
    *offset += CharacterStarts(token.bytes());
    if (!token.has_logprob()) {  // a prompt's first token
      logprobs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    logprobs.push_back(Number(token.logprob()));
    OrderedJson top = OrderedJson::object();
    // Two tokens may have the same text; the likelier one keeps it. The chosen token is always among them.
    for (const v1::TopLogprob& other : token.top()) {
      if (!top.contains(other.token())) top[other.token()] = Number(other.logprob());
    }
    if (!top.contains(token.token())) top[token.token()] = Number(token.logprob());
    tops.push_back(std::move(top));
  }
  return {{"text_offset", std::move(offsets)},
          {"token_logprobs", std::move(logprobs)},
          {"tokens", std::move(tokens)},
          {"top_logprobs", std::move(tops)}};
}

// In a chunk prompt_token_ids come once, hence only when they are there.
template <typename Choice>
void AddTokenIds(const Choice& choice, const ReplyShape& shape, bool in_chunk, OrderedJson& to) {
  if (!shape.return_token_ids) return;
  to["token_ids"] = IdList(choice.token_ids());
  if (!in_chunk || choice.prompt_token_ids_size() > 0)
    to["prompt_token_ids"] = IdList(choice.prompt_token_ids());
}

template <typename Message>
OrderedJson Envelope(const Message& message, const char* object) {
  return {
      {"id", message.id()}, {"object", object}, {"created", message.created()}, {"model", message.model()}};
}

OrderedJson ModelJson(const v1::Model& model) {
  return {{"id", model.id()},
          {"object", "model"},
          {"created", model.created()},
          {"owned_by", model.owned_by()},
          {"max_model_len", model.max_model_len()},
          {"t6",
           {{"variant", model.variant()},
            {"n_parameters", model.n_parameters()},
            {"vocab_size", model.vocab_size()},
            {"device", model.device()},
            {"dtype", model.dtype()},
            {"cache_dtype", model.cache_dtype()}}}};
}

OrderedJson CompletionChoiceJson(const v1::CompletionChoice& choice, const ReplyShape& shape, bool in_chunk,
                                 int64_t* offset) {
  OrderedJson json = {{"index", choice.index()}, {"text", choice.text()}};
  json["logprobs"] = shape.logprobs ? CompletionLogprobs(choice, offset) : OrderedJson(nullptr);
  json["finish_reason"] = FinishReasonJson(choice.finish_reason());
  json["stop_reason"] = StopReasonJson(choice);
  AddTokenIds(choice, shape, in_chunk, json);
  return json;
}

// The event of one chunk; `choice` null: the last, with the usage.
template <typename Chunk>
std::string Event(const Chunk& chunk, const char* object, OrderedJson choice, const ReplyShape& shape) {
  OrderedJson json = Envelope(chunk, object);
  const bool is_usage = choice.is_null();
  json["choices"] = is_usage ? OrderedJson::array() : OrderedJson::array({std::move(choice)});
  if (shape.include_usage) json["usage"] = is_usage ? UsageJson(chunk.usage()) : OrderedJson(nullptr);
  return SseEvent(Dump(json));
}

}  // namespace

std::string ToJson(const v1::ChatCompletionResponse& response, const ReplyShape& shape) {
  OrderedJson json = Envelope(response, "chat.completion");
  OrderedJson& choices = json["choices"] = OrderedJson::array();
  for (const v1::ChatChoice& choice : response.choices()) {
    OrderedJson one = {{"index", choice.index()},
                       {"message",
                        {{"role", choice.message().role().empty() ? "assistant" : choice.message().role()},
                         {"content", choice.message().content()},
                         {"refusal", nullptr}}}};
    one["logprobs"] = shape.logprobs ? ChatLogprobs(choice) : OrderedJson(nullptr);
    one["finish_reason"] = FinishReasonJson(choice.finish_reason());
    one["stop_reason"] = StopReasonJson(choice);
    AddTokenIds(choice, shape, false, one);
    choices.push_back(std::move(one));
  }
  json["usage"] = UsageJson(response.usage());
  return Dump(json);
}

std::string ToJson(const v1::CompletionResponse& response, const ReplyShape& shape) {
  OrderedJson json = Envelope(response, "text_completion");
  OrderedJson& choices = json["choices"] = OrderedJson::array();
  for (const v1::CompletionChoice& choice : response.choices()) {
    int64_t offset = 0;
    choices.push_back(CompletionChoiceJson(choice, shape, false, &offset));
  }
  json["usage"] = UsageJson(response.usage());
  return Dump(json);
}

std::string ToJson(const v1::ListModelsResponse& models) {
  OrderedJson json = {{"object", "list"}, {"data", OrderedJson::array()}};
  for (const v1::Model& model : models.models()) json["data"].push_back(ModelJson(model));
  return Dump(json);
}

std::string ToJson(const v1::Model& model) { return Dump(ModelJson(model)); }

std::string ToJson(const v1::TokenizeResponse& response) {
  return Dump({{"count", response.count()},
               {"max_model_len", response.max_model_len()},
               {"tokens", IdList(response.tokens())}});
}

std::string ToJson(const v1::DetokenizeResponse& response) { return Dump({{"prompt", response.prompt()}}); }

std::string ErrorJson(std::string_view message, std::string_view type, std::string_view param,
                      std::string_view code) {
  const auto or_null = [](std::string_view text) {
    return text.empty() ? OrderedJson(nullptr) : OrderedJson(text);
  };
  const OrderedJson error = {
      {"message", message}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}};
  return Dump({{"error", error}});
}

std::string ErrorJson(const Status& status) {
  return ErrorJson(MessageOf(status), WireErrorOf(status).type, GetErrorParam(status), GetErrorCode(status));
}

// OpenAI's order: the role alone, then text, then the reason for the end with an empty delta, then the usage.
std::string ChatEvents::Write(const v1::ChatCompletionChunk& chunk) {
  static constexpr char kObject[] = "chat.completion.chunk";
  if (!chunk.has_choice()) {
    return chunk.has_usage() && shape_.include_usage ? Event(chunk, kObject, nullptr, shape_) : "";
  }
  const v1::ChatChoice& choice = chunk.choice();
  const auto event = [&](OrderedJson delta, bool ends, bool with_tokens) {
    OrderedJson json = {{"index", choice.index()}, {"delta", std::move(delta)}};
    json["logprobs"] =
        with_tokens && choice.logprobs_size() > 0 ? ChatLogprobs(choice) : OrderedJson(nullptr);
    json["finish_reason"] = ends ? FinishReasonJson(choice.finish_reason()) : OrderedJson(nullptr);
    if (ends) json["stop_reason"] = StopReasonJson(choice);
    if (with_tokens) AddTokenIds(choice, shape_, true, json);
    return Event(chunk, kObject, std::move(json), shape_);
  };
  std::string events;
  if (!choice.message().role().empty()) {
    events += event({{"role", choice.message().role()}, {"content", ""}}, false, false);
  }
  const bool has_tokens =
      choice.logprobs_size() > 0 || choice.token_ids_size() > 0 || choice.prompt_token_ids_size() > 0;
  if (!choice.message().content().empty() || has_tokens) {
    events += event({{"content", choice.message().content()}}, false, true);
  }
  if (choice.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    events += event(OrderedJson::object(), true, false);
  }
  return events;
}

std::string CompletionEvents::Write(const v1::CompletionChunk& chunk) {
  static constexpr char kObject[] = "text_completion";
  if (!chunk.has_choice()) {
    return chunk.has_usage() && shape_.include_usage ? Event(chunk, kObject, nullptr, shape_) : "";
  }
  int64_t* offset = &text_offset_[chunk.choice().index()];
  return Event(chunk, kObject, CompletionChoiceJson(chunk.choice(), shape_, true, offset), shape_);
}

}  // namespace t6::server
