// Proto -> OpenAI's JSON: exact shapes, floats that read back, text that stays UTF-8.
#include "server/http/openai_replies.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "server/error_map.h"

namespace t6::server {
namespace {

using nlohmann::json;

v1::TokenLogprob Token(const std::string& text, std::optional<float> logprob,
                       const std::vector<std::pair<std::string, float>>& top = {}) {
  v1::TokenLogprob token;
  token.set_token(text);
  token.set_bytes(text);
  if (logprob.has_value()) token.set_logprob(*logprob);
  for (const auto& [other, value] : top) {
    auto* t = token.add_top();
    t->set_token(other);
    t->set_bytes(other);
    t->set_logprob(value);
  }
  return token;
}

template <typename Message>
void SetEnvelope(Message* message, const std::string& id) {
  message->set_id(id);
  message->set_created(1700000000);
  message->set_model("m");
}

v1::Usage SomeUsage() {
  v1::Usage usage;
  usage.set_prompt_tokens(10);
  usage.set_completion_tokens(2);
  usage.set_total_tokens(12);
  usage.set_cached_tokens(8);
  return usage;
}

const json kUsage = json::parse(R"({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12,
  "prompt_tokens_details": {"cached_tokens": 8}, "t6": {"cached_tokens_by_tier": {"device": 8}}})");

// The data of each event, which must be well formed.
std::vector<json> Events(const std::string& text) {
  std::vector<json> events;
  for (size_t at = 0; at < text.size();) {
    EXPECT_EQ(text.compare(at, 6, "data: "), 0) << text;
    const size_t end = text.find("\n\n", at);
    if (end == std::string::npos) {
      ADD_FAILURE() << text;
      break;
    }
    events.push_back(json::parse(text.substr(at + 6, end - at - 6)));
    at = end + 2;
  }
  return events;
}

TEST(OpenAiReplies, Chat) {
  v1::ChatCompletionResponse response;
  SetEnvelope(&response, "chatcmpl-1");
  auto* choice = response.add_choices();
  choice->mutable_message()->set_role("assistant");
  choice->mutable_message()->set_content("hi");
  choice->set_finish_reason(v1::FINISH_REASON_STOP);
  choice->set_stop_string("END");
  *response.mutable_usage() = SomeUsage();
  json expected =
      json::parse(R"({"id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi", "refusal": null}, "logprobs": null,
                 "finish_reason": "stop", "stop_reason": "END"}]})");
  expected["usage"] = kUsage;
  EXPECT_EQ(json::parse(ToJson(response, {})), expected);

  *choice->add_logprobs() = Token("\xc3\xa9", -0.5f, {{"\xc3\xa9", -0.5f}, {"e", -1.5f}});
  choice->add_token_ids(7);
  choice->add_prompt_token_ids(1);
  const json full = json::parse(ToJson(response, {.logprobs = true, .return_token_ids = true}))["choices"][0];
  EXPECT_EQ(full["logprobs"], json::parse(R"({"content": [{"token": "é", "logprob": -0.5, "bytes": [195, 169],
    "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "e", "logprob": -1.5, "bytes": [101]}]}],
    "refusal": null})"));
  EXPECT_EQ(full["token_ids"], json({7}));
  EXPECT_EQ(full["prompt_token_ids"], json({1}));
}

TEST(OpenAiReplies, Completion) {
  v1::CompletionResponse response;
  SetEnvelope(&response, "cmpl-1");
  auto* choice = response.add_choices();
  choice->set_text("aéb");
  choice->set_finish_reason(v1::FINISH_REASON_LENGTH);
  *choice->add_logprobs() = Token("a", std::nullopt);
  *choice->add_logprobs() = Token("é", -2.f, {{"x", -0.1f}, {"y", -0.2f}, {"x", -0.3f}});
  *choice->add_logprobs() = Token("b", -1.f, {{"b", -1.f}});
  *response.mutable_usage() = SomeUsage();
  json expected =
      json::parse(R"({"id": "cmpl-1", "object": "text_completion", "created": 1700000000, "model": "m",
    "choices": [{"index": 0, "text": "aéb", "finish_reason": "length", "stop_reason": null,
      "logprobs": {"tokens": ["a", "é", "b"], "token_logprobs": [null, -2.0, -1.0], "text_offset": [0, 1, 2],
        "top_logprobs": [null, {"x": -0.1, "y": -0.2, "é": -2.0}, {"b": -1.0}]}}]})");
  expected["usage"] = kUsage;
  EXPECT_EQ(json::parse(ToJson(response, {.logprobs = true})), expected);
  expected["choices"][0]["logprobs"] = nullptr;
  EXPECT_EQ(json::parse(ToJson(response, {})), expected);
}

TEST(OpenAiReplies, TextOffsetsCountCharactersAcrossTokensThatSplitOne) {
  v1::CompletionResponse response;
  auto* choice = response.add_choices();
  for (const char* piece : {"\xf0\x9f", "\x98\x80", "!"}) *choice->add_logprobs() = Token(piece, -1.f);
  for (auto& token : *choice->mutable_logprobs()) token.set_token("?");
  const json logprobs = json::parse(ToJson(response, {.logprobs = true}))["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["text_offset"], json({0, 1, 1}));
}

TEST(OpenAiReplies, FloatsReadBackAsTheSameFloat32) {
  v1::CompletionResponse response;
  auto* choice = response.add_choices();
  std::mt19937 random(5);
  std::vector<float> values = {-0.1f, -1e-20f, -123456.79f, 0.f, std::numeric_limits<float>::denorm_min()};
  while (values.size() < 1000)
    values.push_back(-std::ldexp(static_cast<float>(random()), static_cast<int>(random() % 60) - 60));
  for (const float value : values) *choice->add_logprobs() = Token("t", value);
  const std::string text = ToJson(response, {.logprobs = true});
  const json read = json::parse(text)["choices"][0]["logprobs"]["token_logprobs"];
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(static_cast<float>(read[i].get<double>()), values[i]);
  }
  EXPECT_EQ(read[0].dump(), "-0.1") << "and not the 17 digits of the double";
}

TEST(OpenAiReplies, NothingInvalidLeaves) {
  v1::CompletionResponse response;
  auto* choice = response.add_choices();
  choice->set_text("a\xff");
  *choice->add_logprobs() = Token("\xc3", -std::numeric_limits<float>::infinity(), {{"z", NAN}});
  const json read = json::parse(ToJson(response, {.logprobs = true}))["choices"][0];
  EXPECT_EQ(read["text"], "a\xef\xbf\xbd");
  EXPECT_EQ(read["logprobs"]["token_logprobs"][0], -9999.0);
  EXPECT_EQ(read["logprobs"]["top_logprobs"][0]["z"], -9999.0);
}

TEST(OpenAiReplies, ChatEventsComeInOpenAisOrder) {
  v1::ChatCompletionChunk chunk;
  SetEnvelope(&chunk, "chatcmpl-1");
  chunk.mutable_choice()->mutable_message()->set_role("assistant");
  chunk.mutable_choice()->mutable_message()->set_content("hi");
  *chunk.mutable_choice()->add_logprobs() = Token("hi", -1.f);
  chunk.mutable_choice()->set_finish_reason(v1::FINISH_REASON_STOP);
  chunk.mutable_choice()->set_stop_token_id(4);
  ChatEvents events({.include_usage = true, .logprobs = true});
  const auto written = Events(events.Write(chunk));
  ASSERT_EQ(written.size(), 3u);
  EXPECT_EQ(written[0],
            json::parse(R"({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000,
    "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": null,
    "finish_reason": null}], "usage": null})"));
  EXPECT_EQ(written[1]["choices"][0]["delta"], json::parse(R"({"content": "hi"})"));
  EXPECT_EQ(written[1]["choices"][0]["logprobs"]["content"].size(), 1u);
  EXPECT_TRUE(written[1]["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(written[2]["choices"][0]["delta"], json::object());
  EXPECT_EQ(written[2]["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(written[2]["choices"][0]["stop_reason"], 4);

  v1::ChatCompletionChunk last;
  SetEnvelope(&last, "chatcmpl-1");
  *last.mutable_usage() = SomeUsage();
  const auto usage = Events(events.Write(last));
  ASSERT_EQ(usage.size(), 1u);
  EXPECT_EQ(usage[0]["choices"], json::array());
  EXPECT_EQ(usage[0]["usage"], kUsage);
  EXPECT_EQ(ChatEvents({}).Write(last), "") << "not asked for";
  EXPECT_FALSE(Events(ChatEvents({}).Write(chunk))[0].contains("usage"));
}

// A token whose characters are not complete yet has log-probabilities but no text.
TEST(OpenAiReplies, AChatChunkWithoutTextKeepsItsTokens) {
  v1::ChatCompletionChunk chunk;
  chunk.mutable_choice()->add_token_ids(9);
  const auto written = Events(ChatEvents({.return_token_ids = true}).Write(chunk));
  ASSERT_EQ(written.size(), 1u);
  EXPECT_EQ(written[0]["choices"][0]["delta"]["content"], "");
  EXPECT_EQ(written[0]["choices"][0]["token_ids"], json({9}));
}

TEST(OpenAiReplies, CompletionEventsKeepEachChoicesOffset) {
  CompletionEvents events({.logprobs = true});
  const auto offset = [&](int index, const std::string& text) {
    v1::CompletionChunk chunk;
    chunk.mutable_choice()->set_index(index);
    chunk.mutable_choice()->set_text(text);
    *chunk.mutable_choice()->add_logprobs() = Token(text, -1.f);
    const json event = Events(events.Write(chunk))[0];
    EXPECT_EQ(event["object"], "text_completion");
    EXPECT_EQ(event["choices"][0]["text"], text);
    return event["choices"][0]["logprobs"]["text_offset"][0].get<int>();
  };
  EXPECT_EQ(offset(0, "abc"), 0);
  EXPECT_EQ(offset(1, "de"), 0);
  EXPECT_EQ(offset(0, "f"), 3);
  EXPECT_EQ(offset(1, "g"), 2);
}

TEST(OpenAiReplies, ErrorsHaveAllFourKeys) {
  EXPECT_EQ(
      json::parse(ErrorJson(BadField("top_p", "\"top_p\" = 2"))),
      json::parse(
          R"({"error": {"message": "\"top_p\" = 2", "type": "invalid_request_error", "param": "top_p", "code": null}})"));
  EXPECT_EQ(
      json::parse(ErrorJson(SetErrorCode(NotFound("no model \"\xff\""), "model_not_found")))["error"]["code"],
      "model_not_found");
}

TEST(OpenAiReplies, TokenizerAndModels) {
  v1::TokenizeResponse tokens;
  tokens.add_tokens(3);
  tokens.set_count(1);
  tokens.set_max_model_len(5);
  EXPECT_EQ(json::parse(ToJson(tokens)), json::parse(R"({"tokens": [3], "count": 1, "max_model_len": 5})"));
  v1::DetokenizeResponse text;
  text.set_prompt("x");
  EXPECT_EQ(json::parse(ToJson(text)), json::parse(R"({"prompt": "x"})"));
  v1::Model model;
  model.set_id("m");
  model.set_owned_by("t6");
  v1::ListModelsResponse list;
  *list.add_models() = model;
  EXPECT_EQ(json::parse(ToJson(list))["data"], json::array({json::parse(ToJson(model))}));
}

}  // namespace
}  // namespace t6::server
