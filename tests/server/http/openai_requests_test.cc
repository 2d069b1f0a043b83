// JSON -> proto: what is understood, what is refused and how, and that nothing breaks it.
#include "server/http/openai_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <set>
#include <sstream>

#include "server/error_map.h"
#include "server/http/field_parsers.h"

namespace t6::server {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kDepth = 64;

// `field` is a JSON member, put beside a valid message.
auto Chat(const std::string& field) {
  return ParseChatRequest(
      R"({"messages": [{"role": "user", "content": "hi"}])" + (field.empty() ? "" : ", " + field) + "}",
      kDepth);
}
auto Completion(const std::string& field) {
  return ParseCompletionRequest(R"({"prompt": "p")" + (field.empty() ? "" : ", " + field) + "}", kDepth);
}

template <typename T>
void ExpectRefused(const StatusOr<T>& result, const std::string& param,
                   const std::vector<std::string>& said) {
  ASSERT_FALSE(result.ok()) << param;
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GetErrorParam(result.status()), param);
  for (const std::string& part : said) EXPECT_THAT(std::string(result.status().message()), HasSubstr(part));
}

TEST(OpenAiRequests, ReadsEveryHonouredFieldOfAChat) {
  const auto call = ParseChatRequest(R"({
    "model": "m", "messages": [
      {"role": "system", "content": "s", "name": "n"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "max_tokens": 5, "max_completion_tokens": 5, "temperature": 0.25, "top_p": 0.5, "top_k": -1, "seed": -1,
    "stop": "x", "stop_token_ids": [1, 2], "ignore_eos": true, "logprobs": true, "top_logprobs": 3, "stream": true,
    "stream_options": {"include_usage": true}, "return_token_ids": true, "add_generation_prompt": false,
    "continue_final_message": true, "cache_salt": "salt", "priority": -2, "user": "u", "metadata": {"a": "b"}})",
                                     kDepth);
  ASSERT_TRUE(call.ok()) << call.status();
  const v1::ChatCompletionRequest& r = call->request;
  EXPECT_EQ(r.model(), "m");
  ASSERT_EQ(r.messages_size(), 2);
  EXPECT_EQ(r.messages(0).role(), "system");
  EXPECT_EQ(r.messages(0).name(), "n");
  EXPECT_EQ(r.messages(1).content(), "ab");
  EXPECT_EQ(r.sampling().max_tokens(), 5);
  EXPECT_EQ(r.sampling().temperature(), 0.25f);
  EXPECT_EQ(r.sampling().top_p(), 0.5f);
  EXPECT_EQ(r.sampling().top_k(), -1);
  EXPECT_EQ(r.sampling().seed(), ~uint64_t{0});
  EXPECT_THAT(r.sampling().stop(), ElementsAre("x"));
  EXPECT_THAT(r.sampling().stop_token_ids(), ElementsAre(1, 2));
  EXPECT_TRUE(r.sampling().ignore_eos());
  EXPECT_TRUE(r.logprobs());
  EXPECT_EQ(r.top_logprobs(), 3);
  EXPECT_TRUE(r.return_token_ids());
  EXPECT_TRUE(r.has_add_generation_prompt() && !r.add_generation_prompt());
  EXPECT_TRUE(r.continue_final_message());
  EXPECT_EQ(r.cache_salt(), "salt");
  EXPECT_EQ(r.priority(), -2);
  EXPECT_EQ(r.user(), "u");
  EXPECT_TRUE(call->shape.stream && call->shape.include_usage && call->shape.logprobs &&
              call->shape.return_token_ids);
}

TEST(OpenAiRequests, LeavesOutWhatIsNullOrAbsent) {
  const auto call = Chat(
      R"("temperature": null, "seed": null, "stop": null, "stream": null, "stream_options": null, "n": null,
                            "tools": null, "model": null, "audio": null)");
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_FALSE(call->request.sampling().has_temperature());
  EXPECT_FALSE(call->request.sampling().has_seed());
  EXPECT_FALSE(call->request.sampling().has_max_tokens());
  EXPECT_FALSE(call->request.has_add_generation_prompt());
  EXPECT_FALSE(call->shape.stream);
  EXPECT_FALSE(Completion("")->request.has_logprobs());
  EXPECT_TRUE(Completion(R"("logprobs": 0)")->request.has_logprobs());
}

TEST(OpenAiRequests, ReadsTheFourKindsOfPrompt) {
  const auto prompts = [](const std::string& json) {
    return ParseCompletionRequest("{\"prompt\": " + json + "}", kDepth);
  };
  EXPECT_EQ(prompts(R"("a")")->request.prompts(0).text(), "a");
  EXPECT_TRUE(prompts(R"("")")->request.prompts(0).has_text());
  EXPECT_EQ(prompts(R"(["a", "b"])")->request.prompts(1).text(), "b");
  EXPECT_THAT(prompts("[1, 2.0, 3]")->request.prompts(0).tokens().ids(), ElementsAre(1, 2, 3));
  const auto lists = prompts("[[1], [2, 3], []]");
  ASSERT_TRUE(lists.ok());
  ASSERT_EQ(lists->request.prompts_size(), 3);
  EXPECT_THAT(lists->request.prompts(1).tokens().ids(), ElementsAre(2, 3));
  EXPECT_TRUE(lists->request.prompts(2).has_tokens());

  ExpectRefused(prompts("[]"), "prompt", {"empty"});
  ExpectRefused(prompts("7"), "prompt", {"got 7"});
  ExpectRefused(prompts(R"(["a", 1])"), "prompt[1]", {"got 1"});
  ExpectRefused(prompts(R"([1, "a"])"), "prompt[1]", {"\"a\""});
  ExpectRefused(prompts("[[1], [1, 2.5]]"), "prompt[1][1]", {"2.5"});
  ExpectRefused(prompts("[4294967296]"), "prompt[0]", {"4294967296", "out of range"});
  ExpectRefused(prompts("[{}]"), "prompt[0]", {"{}"});
  ExpectRefused(prompts("null"), "prompt", {"missing"});
}

TEST(OpenAiRequests, NamesTheFieldAndShowsTheValueOfAWrongType) {
  ExpectRefused(Chat(R"("temperature": "hot")"), "temperature",
                {"\"temperature\" must be a number", "\"hot\""});
  ExpectRefused(Chat(R"("temperature": true)"), "temperature", {"true"});
  ExpectRefused(Chat(R"("temperature": 1e39)"), "temperature", {"1e+39", "out of range"});
  ExpectRefused(Chat(R"("max_tokens": 1.5)"), "max_tokens", {"1.5"});
  ExpectRefused(Chat(R"("max_tokens": 99999999999)"), "max_tokens", {"99999999999", "out of range"});
  ExpectRefused(Chat(R"("max_tokens": 18446744073709551615)"), "max_tokens", {"18446744073709551615"});
  ExpectRefused(Chat(R"("max_tokens": -99999999999)"), "max_tokens", {"-99999999999"});
  ExpectRefused(Chat(R"("max_tokens": 123456789012345678901234567890)"), "max_tokens", {"integer"});
  ExpectRefused(Chat(R"("seed": 123456789012345678901234567890)"), "seed", {"64 bits"});
  ExpectRefused(Chat(R"("stream": "yes")"), "stream", {"true or false", "\"yes\""});
  ExpectRefused(Chat(R"("stop": 3)"), "stop", {"got 3"});
  ExpectRefused(Chat(R"("stop": ["a", 3])"), "stop[1]", {"got 3"});
  ExpectRefused(Chat(R"("stop_token_ids": ["a"])"), "stop_token_ids[0]", {"\"a\""});
  ExpectRefused(Chat(R"("model": [1, 2, 3])"), "model", {"[1,2,3]"});
  ExpectRefused(Chat(R"("metadata": "x")"), "metadata", {"an object"});
  ExpectRefused(Chat(R"("logprobs": 5)"), "logprobs", {"true or false"});
  ExpectRefused(Completion(R"("logprobs": true)"), "logprobs", {"integer"});
  const auto shortened = Chat("\"stop\": {\"" + std::string(5000, 'k') + "\": 1}");
  ASSERT_FALSE(shortened.ok());
  EXPECT_LT(shortened.status().message().size(), 200u);
  EXPECT_EQ(Chat(R"("seed": 18446744073709551615)")->request.sampling().seed(), ~uint64_t{0});
  EXPECT_EQ(Chat(R"("max_tokens": 16.0)")->request.sampling().max_tokens(), 16);
}

TEST(OpenAiRequests, ChecksMessages) {
  const auto messages = [](const std::string& json) {
    return ParseChatRequest("{\"messages\": " + json + "}", kDepth);
  };
  ExpectRefused(messages("[]"), "messages", {"empty"});
  ExpectRefused(messages("\"hi\""), "messages", {"list"});
  ExpectRefused(messages("[1]"), "messages[0]", {"got 1"});
  ExpectRefused(messages(R"([{"role": "user"}])"), "messages[0].content", {"missing"});
  ExpectRefused(messages(R"([{"role": "user", "content": null}])"), "messages[0].content", {"missing"});
  ExpectRefused(messages(R"([{"content": "x"}])"), "messages[0].role", {"missing"});
  ExpectRefused(messages(R"([{"role": 1, "content": "x"}])"), "messages[0].role", {"got 1"});
  ExpectRefused(messages(R"([{"role": "user", "content": 1}])"), "messages[0].content", {"got 1"});
  ExpectRefused(messages(R"([{"role": "user", "content": "x", "colour": "red"}])"), "messages[0].colour",
                {"unknown field \"colour\"", "messages[0]"});
  ExpectRefused(
      messages(R"([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}])"),
      "messages[0].content[0].type", {"image_url", "only \"text\""});
  ExpectRefused(messages(R"([{"role": "user", "content": [{"type": "text"}]}])"),
                "messages[0].content[0].text", {"missing"});
  ExpectRefused(messages(R"([{"role": "user", "content": ["x"]}])"), "messages[0].content[0]", {"\"x\""});
  ExpectRefused(messages(R"([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}])"),
                "messages[0].tool_calls", {"not supported"});
  // As an answer's message comes back from the openai package, and as lm-evaluation-harness marks messages.
  EXPECT_TRUE(
      messages(
          R"([{"role": "assistant", "content": "", "refusal": null, "tool_calls": null, "annotations": [],
                            "audio": null, "function_call": null}, {"role": "user", "content": "x", "type": "text"}])")
          .ok());
  EXPECT_EQ(messages(R"([{"role": "user", "content": []}])")->request.messages(0).content(), "");
}

TEST(OpenAiRequests, ChecksWhatOnlyJsonCanSayWrong) {
  ExpectRefused(Chat(R"("max_tokens": 5, "max_completion_tokens": 6)"), "max_completion_tokens", {"6", "5"});
  EXPECT_EQ(Chat(R"("max_completion_tokens": 6)")->request.sampling().max_tokens(), 6);
  ExpectRefused(Completion(R"("max_completion_tokens": 6)"), "max_completion_tokens", {"unknown"});
  ExpectRefused(Chat(R"("stream_options": {"include_usage": true})"), "stream_options", {"stream"});
  ExpectRefused(Chat(R"("stream": true, "stream_options": {"x": 1})"), "stream_options.x", {"unknown field"});
  ExpectRefused(Chat(R"("stream": true, "stream_options": 1)"), "stream_options", {"got 1"});
  ExpectRefused(
      ParseTokenizeRequest(R"({"prompt": "", "messages": [{"role": "user", "content": "x"}]})", kDepth),
      "prompt", {"both"});
  ExpectRefused(ParseTokenizeRequest("{}", kDepth), "prompt", {"neither"});
  EXPECT_TRUE(ParseTokenizeRequest(R"({"prompt": ""})", kDepth).ok());
  EXPECT_EQ(ParseTokenizeRequest(
                R"({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false})", kDepth)
                ->messages_size(),
            1);
  EXPECT_THAT(ParseDetokenizeRequest(R"({"tokens": [5, 6]})", kDepth)->tokens(), ElementsAre(5, 6));
  ExpectRefused(ParseDetokenizeRequest(R"({"tokens": "5"})", kDepth), "tokens", {"\"5\""});
}

TEST(OpenAiRequests, IsStrictJson) {
  for (const auto& [body, said] : std::vector<std::pair<std::string, std::string>>{
           {"", "empty"},
           {" \n", "empty"},
           {"[]", "must be a JSON object"},
           {"null", "must be a JSON object"},
           {"{", "not valid JSON"},
           {"{} {}", "not valid JSON"},
           {"{'prompt': 1}", "not valid JSON"},
           {"{\"prompt\": \"a\",}", "not valid JSON"},
           {"{\"prompt\": NaN}", "not valid JSON"},
           {"{\"temperature\": Infinity}", "not valid JSON"},
           {"{\"temperature\": 1e999}", "not valid JSON"},
           {"{\"temperature\": 01}", "not valid JSON"},
           {"{/* c */}", "not valid JSON"},
           {"{\"prompt\": \"\xff\"}", "not valid JSON"},
           {"{\"prompt\": \"\xc3\"}", "not valid JSON"},
           {"{\"prompt\": \"\xed\xa0\x80\"}", "not valid JSON"},
           {"{\"prompt\": \"\\ud800\"}", "not valid JSON"},
           {"{\"prompt\": \"a\nb\"}", "not valid JSON"},
           {"{\"prompt\": \"a\", \"prompt\": \"b\"}", "twice"},
           {std::string("{\"a\0\": 1}", 9), "not valid JSON"},
       }) {
    const auto call = ParseCompletionRequest(body, kDepth);
    ASSERT_FALSE(call.ok()) << body;
    EXPECT_THAT(std::string(call.status().message()), HasSubstr(said)) << body;
    EXPECT_LT(call.status().message().size(), 400u);
  }
  EXPECT_EQ(ParseCompletionRequest(R"({"prompt": "\u0000\ud83d\ude00"})", kDepth)->request.prompts(0).text(),
            std::string("\0\xf0\x9f\x98\x80", 5));
}

TEST(OpenAiRequests, BoundsDepthAndNumberOfValues) {
  const auto nested = [](int levels) {
    return ParseJsonObject("{\"a\":" + std::string(levels - 1, '[') + std::string(levels - 1, ']') + "}",
                           kDepth);
  };
  EXPECT_TRUE(nested(64).ok());
  EXPECT_FALSE(nested(65).ok());
  EXPECT_FALSE(nested(1000000).ok());
  std::string many = "{\"a\":[0";
  for (int i = 0; i < (1 << 20); ++i) many += ",0";
  EXPECT_THAT(std::string(ParseJsonObject(many + "]}", kDepth).status().message()),
              HasSubstr("more than 1048576 values"));
}

// ---- the table

// Each field of each scope, where a request can hold it.
StatusOr<ReplyShape> WithField(Scope scope, std::string_view name, const std::string& value) {
  const std::string field = fmt::format("\"{}\": {}", name, value);
  const auto shape = [](const auto& call) -> StatusOr<ReplyShape> {
    if (!call.ok()) return call.status();
    return ReplyShape{};
  };
  switch (scope) {
    case kChat:
      return shape(ParseChatRequest(
          name == "messages" ? "{" + field + "}"
                             : R"({"messages": [{"role": "user", "content": "x"}], )" + field + "}",
          kDepth));
    case kCompletion:
      return shape(ParseCompletionRequest(
          name == "prompt" ? "{" + field + "}" : R"({"prompt": "x", )" + field + "}", kDepth));
    case kTokenize:
      return shape(ParseTokenizeRequest(
          name == "prompt" || name == "messages" ? "{" + field + "}" : R"({"prompt": "x", )" + field + "}",
          kDepth));
    case kDetokenize:
      return shape(ParseDetokenizeRequest(
          name == "tokens" ? "{" + field + "}" : R"({"tokens": [], )" + field + "}", kDepth));
    case kStreamOptions:
      return shape(Chat(R"("stream": true, "stream_options": {)" + field + "}"));
    case kMessage: {
      std::string rest = name == "role" ? "" : R"("role": "user", )";
      if (name != "content") rest += R"("content": "x", )";
      return shape(ParseChatRequest("{\"messages\": [{" + rest + field + "}]}", kDepth));
    }
    case kTextPart: {
      std::string rest = name == "type" ? "" : R"("type": "text", )";
      if (name != "text") rest += R"("text": "x", )";
      return shape(ParseChatRequest(
          R"({"messages": [{"role": "user", "content": [{)" + rest + field + "}]}]}", kDepth));
    }
  }
  return Internal("no such scope");
}

constexpr Scope kScopes[] = {kChat, kCompletion, kTokenize, kDetokenize, kStreamOptions, kMessage, kTextPart};

TEST(RequestFields, EveryFieldDoesWhatItsListSays) {
  for (const Field& field : RequestFields()) {
    for (const Scope scope : kScopes) {
      if ((field.scopes & scope) == 0) continue;
      SCOPED_TRACE(fmt::format("{} in {}", field.name, static_cast<int>(scope)));
      // No field takes this value, but those of which any object is ignored.
      const auto absurd = WithField(scope, field.name, R"({"absurd": [1.5]})");
      if (field.name == "metadata" || field.name == "prompt_cache_options") {
        EXPECT_TRUE(absurd.ok());
      } else {
        ASSERT_FALSE(absurd.ok());
        EXPECT_THAT(GetErrorParam(absurd.status()), HasSubstr(std::string(field.name)));
        EXPECT_THAT(std::string(absurd.status().message()), HasSubstr("absurd"));
      }
      if (field.list == FieldList::kNeutral) {
        for (const Json& value : Json::parse(field.neutral)) {
          EXPECT_TRUE(WithField(scope, field.name, value.dump()).ok()) << value;
        }
      }
      if (field.list != FieldList::kHonoured) {
        EXPECT_TRUE(WithField(scope, field.name, "null").ok());
      }
    }
  }
}

TEST(RequestFields, StandOnceInEachScope) {
  std::set<std::pair<std::string_view, unsigned>> seen;
  for (const Field& field : RequestFields()) {
    for (const Scope scope : kScopes) {
      if ((field.scopes & scope) != 0) {
        EXPECT_TRUE(seen.emplace(field.name, scope).second) << field.name;
      }
    }
  }
}

TEST(RequestFields, RefusalsSayWhatToSendInstead) {
  ExpectRefused(Chat(R"("n": 3)"), "n", {"\"n\" = 3 is not supported yet; leave it out or send 1"});
  ExpectRefused(Chat(R"("tool_choice": "required")"), "tool_choice",
                {"\"required\"", "\"none\" or \"auto\""});
  ExpectRefused(Chat(R"("guided_json": {})"), "guided_json", {"leave it out"});
  ExpectRefused(Chat(R"("response_format": {"type": "json_object"})"), "response_format",
                {"json_object", "{\"type\":\"text\"}"});
  EXPECT_EQ(GetErrorCode(Chat(R"("n": 3)").status()), "unsupported_parameter");
  EXPECT_EQ(GetErrorCode(Chat(R"("nn": 3)").status()), "unknown_parameter");
  const auto odd = Chat("\"" + std::string(4000, 'q') + "\": 1");
  ASSERT_FALSE(odd.ok());
  EXPECT_LT(odd.status().message().size(), 200u);
}

// What well-known clients send without being asked to.
TEST(RequestFields, ClientsDefaultsPass) {
  for (
      const char* fields : {
          // LangChain
          R"("model": "m", "temperature": 0.7, "n": 1, "stream": false, "presence_penalty": 0.0, "frequency_penalty": 0,
              "top_p": 1, "seed": null, "logit_bias": null, "parallel_tool_calls": true, "max_completion_tokens": 10)",
          // vLLM's benchmark
          R"("model": "m", "temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 3, "logprobs": null, "stream": true,
              "stream_options": {"include_usage": true}, "ignore_eos": true, "best_of": 1, "use_beam_search": false)",
          R"("store": false, "service_tier": "auto", "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
              "metadata": null, "modalities": ["text"], "min_p": 0, "min_tokens": 0, "skip_special_tokens": true,
              "user": "", "safety_identifier": "x", "prompt_cache_key": "y", "logit_bias": {}, "logprobs": false)",
      }) {
    EXPECT_TRUE(Chat(fields).ok()) << Chat(fields).status();
  }
  // lm-evaluation-harness
  const auto harness = ParseCompletionRequest(
      R"({"model": "m", "prompt": [[1, 2, 3]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true})",
      kDepth);
  EXPECT_TRUE(harness.ok()) << harness.status();
}

TEST(RequestFields, TheReferenceListsThemAll) {
  std::ifstream file(std::string(T6_SOURCE_DIR) + "/docs/api.md");
  std::stringstream text;
  text << file.rdbuf();
  const std::string begin = "<!-- fields -->\n", end = "<!-- /fields -->";
  const size_t from = text.str().find(begin), to = text.str().find(end);
  ASSERT_TRUE(from != std::string::npos && to != std::string::npos);
  const std::string lists = text.str().substr(from + begin.size(), to - from - begin.size());
  EXPECT_EQ(lists, FieldListsMarkdown()) << "put into docs/api.md between the marks:\n"
                                         << FieldListsMarkdown();
}

TEST(OpenAiRequests, SurvivesAThousandMutations) {
  const std::string good =
      R"({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "\u00e9"}]}],
    "temperature": 0.5, "seed": 12, "stop": ["a", "b"], "stream": true, "stream_options": {"include_usage": true}, "n": 1})";
  ASSERT_TRUE(ParseChatRequest(good, kDepth).ok());
  std::mt19937 random(3);
  int refused = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string body = good;
    for (unsigned k = 1 + random() % 4; k > 0; --k) {
      const size_t at = random() % body.size();
      switch (random() % 4) {
        case 0:
          body[at] = static_cast<char>(random());
          break;
        case 1:
          body.erase(at, 1 + random() % 8);
          break;
        case 2:
          body.insert(at, 1, "{}[],:\"0-e\\"[random() % 11]);
          break;
        default:
          body.insert(at, good.substr(random() % good.size(), random() % 20));
      }
      if (body.empty()) break;
    }
    const auto call = ParseChatRequest(body, kDepth);
    if (call.ok()) continue;
    ++refused;
    EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << body;
    EXPECT_FALSE(call.status().message().empty());
    EXPECT_LT(call.status().message().size(), 500u);
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace t6::server
