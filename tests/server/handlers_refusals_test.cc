// What the handlers refuse, and that they name and quote it.
#include <gmock/gmock.h>

#include <cmath>

#include "server/error_map.h"
#include "tests/server/handlers_fixture.h"

namespace t6::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using HandlersRefusalsTest = HandlersTest;

TEST_F(HandlersRefusalsTest, TooLongIsRefusedWithBothNumbers) {
  v1::CompletionRequest request = TokenRequest(std::vector<int32_t>(2000, 10));
  request.mutable_sampling()->set_max_tokens(49);
  Status status = Complete(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::AllOf(HasSubstr("2049"), HasSubstr("2048")));
  EXPECT_EQ(GetErrorParam(status), "max_tokens");
  EXPECT_EQ(GetErrorCode(status), "context_length_exceeded");
  request.mutable_sampling()->set_max_tokens(48);
  world_.engine.AnswerWith({9});
  EXPECT_TRUE(Complete(request).ok());
  status = Complete(TokenRequest(std::vector<int32_t>(2048, 10))).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("2048 tokens"));
  EXPECT_EQ(GetErrorParam(status), "prompt");
  // What cannot fit whatever it says is not tokenised at all; what is shorter is, and counted.
  const size_t most = 2048 * RealTokenizer().most_bytes_per_token();
  const Status plain = Complete(TextRequest(std::string(most + 1000, 'x'))).status();
  EXPECT_THAT(std::string(plain.message()), HasSubstr("bytes, which cannot fit"));
  EXPECT_EQ(GetErrorCode(plain), "context_length_exceeded");
  const Status counted = Complete(TextRequest(std::string(most - 1000, 'x'))).status();
  EXPECT_THAT(std::string(counted.message()), HasSubstr("tokens"));
  EXPECT_EQ(GetErrorCode(counted), "context_length_exceeded");
}

// One bad field at a time: the field, and the value in the message.
TEST_F(HandlersRefusalsTest, BadValuesAreNamedAndQuoted) {
  struct Case {
    std::function<void(v1::CompletionRequest&)> spoil;
    std::string param, value;
  };
  const auto sampling = [](auto set) {
    return [set](v1::CompletionRequest& r) { set(*r.mutable_sampling()); };
  };
  using S = v1::SamplingOptions;
  const Case cases[] = {
      {sampling([](S& s) { s.set_temperature(2.5f); }), "temperature", "2.5"},
      {sampling([](S& s) { s.set_temperature(-1); }), "temperature", "-1"},
      {sampling([](S& s) { s.set_temperature(NAN); }), "temperature", "nan"},
      {sampling([](S& s) { s.set_top_p(0); }), "top_p", "0"},
      {sampling([](S& s) { s.set_top_p(1.5f); }), "top_p", "1.5"},
      {sampling([](S& s) { s.set_top_k(-2); }), "top_k", "-2"},
      {sampling([](S& s) { s.set_max_tokens(-1); }), "max_tokens", "-1"},
      {sampling([](S& s) { s.set_max_tokens(0); }), "max_tokens", "0"},
      {sampling([](S& s) { s.set_max_tokens(2147483647); }), "max_tokens", "2147483647"},
      {sampling([](S& s) {
         for (int i = 0; i < 17; ++i) s.add_stop(std::string("x"));
       }),
       "stop", "17"},
      {sampling([](S& s) { s.add_stop(""); }), "stop", "\"\""},
      {sampling([](S& s) { s.add_stop(std::string(600, 'x')); }), "stop", "600"},
      {sampling([](S& s) { s.add_stop_token_ids(8192); }), "stop_token_ids[0]", "8192"},
      {sampling([](S& s) { s.add_stop_token_ids(-1); }), "stop_token_ids[0]", "-1"},
      {[](v1::CompletionRequest& r) { r.set_logprobs(21); }, "logprobs", "21"},
      {[](v1::CompletionRequest& r) { r.set_logprobs(-1); }, "logprobs", "-1"},
      {[](v1::CompletionRequest& r) { r.set_model("gpt"); }, "model", "gpt"},
      {[](v1::CompletionRequest& r) { r.clear_prompts(); }, "prompt", "missing"},
      {[](v1::CompletionRequest& r) { r.mutable_prompts(0)->Clear(); }, "prompt", "missing"},
      {[](v1::CompletionRequest& r) { r.mutable_prompts(0)->set_text(""); }, "prompt", "empty"},
      {[](v1::CompletionRequest& r) { r.mutable_prompts(0)->mutable_tokens()->add_ids(9000); }, "prompt[0]",
       "9000"},
      {[](v1::CompletionRequest& r) { r.mutable_prompts(0)->mutable_tokens(); }, "prompt", "empty"},
      {[](v1::CompletionRequest& r) {
         for (int i = 0; i < 64; ++i) r.add_prompts()->set_text("x");
       },
       "prompt", "65"},
      {[](v1::CompletionRequest& r) { r.set_cache_salt(std::string(300, 's')); }, "cache_salt", "300"},
  };
  for (const Case& c : cases) {
    v1::CompletionRequest request = TextRequest("x");
    c.spoil(request);
    const Status status = Complete(request).status();
    EXPECT_FALSE(status.ok()) << c.param << " " << c.value;
    EXPECT_EQ(GetErrorParam(status), c.param) << status;
    EXPECT_THAT(std::string(status.message()), testing::AllOf(HasSubstr(c.param), HasSubstr(c.value)));
  }
  EXPECT_EQ(world_.engine.n_submitted(), 0u);
}

TEST_F(HandlersRefusalsTest, BadChatsAreNamedAndQuoted) {
  EXPECT_EQ(GetErrorParam(Chat({}).status()), "messages");
  v1::ChatCompletionRequest request = ChatRequest("x");
  request.mutable_messages(0)->set_role("wizard");
  const Status role = Chat(request).status();
  EXPECT_EQ(role.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(role.message()), HasSubstr("wizard"));
  EXPECT_EQ(GetErrorParam(role), "messages[0].role");
  request = ChatRequest("x");
  request.set_top_logprobs(3);
  EXPECT_EQ(GetErrorParam(Chat(request).status()), "top_logprobs");
  request.set_logprobs(true);
  request.set_top_logprobs(21);
  EXPECT_EQ(GetErrorParam(Chat(request).status()), "top_logprobs");
  request = ChatRequest("x");
  request.set_continue_final_message(true);
  request.set_add_generation_prompt(true);
  EXPECT_EQ(GetErrorParam(Chat(request).status()), "continue_final_message");
  request = ChatRequest("x");
  request.mutable_sampling()->set_max_tokens(0);
  EXPECT_EQ(GetErrorParam(Chat(request).status()), "max_tokens");
}

TEST_F(HandlersRefusalsTest, AnUnknownModelIsNotFound) {
  v1::ChatCompletionRequest request = ChatRequest("x");
  request.set_model("gpt");
  const Status status = Chat(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GetErrorCode(status), "model_not_found");
  EXPECT_EQ(world_.info->GetModel("gpt").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(HandlersRefusalsTest, WithoutATokenizerOnlyTokenIdsWork) {
  world_.model.tokenizer = nullptr;
  world_.model.chat_template = nullptr;
  world_.engine.AnswerWith({9});
  EXPECT_THAT(std::string(Complete(TextRequest("x")).status().message()), HasSubstr("without a tokenizer"));
  EXPECT_THAT(std::string(Chat(ChatRequest("x")).status().message()), HasSubstr("without a tokenizer"));
  EXPECT_FALSE(world_.info->Tokenize({}).ok());
  v1::CompletionRequest request = TokenRequest({1, 2});
  request.set_return_token_ids(true);
  request.mutable_sampling()->set_max_tokens(2);
  const auto response = Complete(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_THAT(response->choices(0).token_ids(), ElementsAre(9, 9));
  world_.model.tokenizer = &RealTokenizer();
  EXPECT_THAT(std::string(Chat(ChatRequest("x")).status().message()), HasSubstr("--chat-template"));
}

TEST_F(HandlersRefusalsTest, WhileTheModelLoadsAllIsUnavailable) {
  world_.slot.Set(nullptr);
  EXPECT_EQ(Complete(TextRequest("x")).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(world_.info->Tokenize({}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(world_.info->ListModels().models_size(), 0);
}

}  // namespace
}  // namespace t6::server
