#include "server/handlers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/error_map.h"
#include "tests/server/handlers_fixture.h"
#include "tests/support/patience.h"

namespace t6::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(HandlersTest, ChatRendersTheTemplateAndAnswersWithUsage) {
  std::vector<int32_t> answer = Encode("1931");
  answer.push_back(4);
  world_.engine.AnswerWith(answer);
  world_.engine.cached_tokens = 5;
  v1::ChatCompletionRequest request = ChatRequest("When?");
  request.set_model("docqa");
  request.set_return_token_ids(true);
  const auto response = Chat(request);
  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_EQ(response->choices_size(), 1);
  const v1::ChatChoice& choice = response->choices(0);
  EXPECT_EQ(choice.message().role(), "assistant");
  EXPECT_EQ(choice.message().content(), "1931");
  EXPECT_EQ(choice.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(choice.stop_token_id(), 4);
  EXPECT_EQ(std::vector<int32_t>(choice.token_ids().begin(), choice.token_ids().end()), answer);
  const std::vector<int32_t> prompt(choice.prompt_token_ids().begin(), choice.prompt_token_ids().end());
  EXPECT_EQ(RealTokenizer().Decode(prompt, false).value(), "<|user|>\nWhen?<|end|>\n<|assistant|>\n");
  EXPECT_EQ(response->usage().prompt_tokens(), static_cast<int>(prompt.size()));
  EXPECT_EQ(response->usage().completion_tokens(), static_cast<int>(answer.size()));
  EXPECT_EQ(response->usage().total_tokens(), static_cast<int>(prompt.size() + answer.size()));
  EXPECT_EQ(response->usage().cached_tokens(), 5);
  EXPECT_THAT(response->id(), testing::StartsWith("chatcmpl-"));
  EXPECT_EQ(response->model(), "docqa");
}

TEST_F(HandlersTest, StreamedTextEqualsUnary) {
  world_.engine.AnswerWith(Encode("Ein längerer Text — mit 🦊 und 東京, immer wieder."));
  v1::CompletionRequest request = TextRequest("x");
  request.mutable_sampling()->set_max_tokens(200);
  request.mutable_sampling()->add_stop("nie da");
  request.set_logprobs(0);
  const auto unary = Complete(request);
  ASSERT_TRUE(unary.ok()) << unary.status();

  auto call = world_.completion->Stream(request, {});
  ASSERT_TRUE(call.ok()) << call.status();
  std::string text;
  int logprobs = 0;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
  bool usage = false;
  while (true) {
    auto chunk = NextOf(**call);
    ASSERT_TRUE(chunk.ok()) << chunk.status();
    if (!chunk->has_value()) break;
    ASSERT_FALSE(usage) << "nothing follows the usage";
    ASSERT_NE((*chunk)->has_choice(), (*chunk)->has_usage());
    text += (*chunk)->choice().text();
    logprobs += (*chunk)->choice().logprobs_size();
    finish = std::max(finish, (*chunk)->choice().finish_reason());
    usage = (*chunk)->has_usage();
  }
  EXPECT_EQ(text, unary->choices(0).text());
  EXPECT_EQ(logprobs, unary->choices(0).logprobs_size());
  EXPECT_EQ(finish, v1::FINISH_REASON_LENGTH);
  EXPECT_TRUE(usage);
}

TEST_F(HandlersTest, SeveralPromptsBecomeSeveralChoices) {
  world_.engine.AnswerWith(Encode(" yes"));
  v1::CompletionRequest request = TokenRequest({10, 11});
  request.add_prompts()->set_text("another one");
  request.mutable_sampling()->set_max_tokens(1);
  request.set_echo(true);
  const auto response = Complete(request);
  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_EQ(response->choices_size(), 2);
  EXPECT_EQ(response->choices(1).index(), 1);
  EXPECT_EQ(response->choices(1).text(), "another one yes");
  EXPECT_EQ(response->usage().completion_tokens(), 2);
}

TEST_F(HandlersTest, LogprobsOfPromptsAreBoundedForOneRequestAndForAll) {
  v1::CompletionRequest request = TokenRequest(std::vector<int32_t>(800, 10));
  for (int i = 1; i < 64; ++i) *request.add_prompts() = request.prompts(0);
  request.mutable_sampling()->set_max_tokens(0);
  request.set_echo(true);
  request.set_logprobs(20);  // 64 x 800 x 21
  const Status too_many = Complete(request).status();
  EXPECT_EQ(too_many.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GetErrorParam(too_many), "logprobs");
  EXPECT_THAT(std::string(too_many.message()), HasSubstr("1075200"));
  request.set_logprobs(19);
  std::vector<std::unique_ptr<StreamingCall<v1::CompletionChunk>>> calls;
  for (int i = 0; i < 4; ++i) {
    auto call = world_.completion->Stream(request, {});
    ASSERT_TRUE(call.ok()) << call.status();
    calls.push_back(*std::move(call));
  }
  EXPECT_EQ(world_.completion->Stream(request, {}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(world_.completion->Stream(TextRequest("x"), {}).ok()) << "which asks for none";
  calls.pop_back();
  Status again;  // a thread that just then told the call something gives its share back a little later
  const absl::Time limit = absl::Now() + kPatience;
  do again = world_.completion->Stream(request, {}).status();
  while (!again.ok() && absl::Now() < limit);
  EXPECT_TRUE(again.ok()) << again;
}

TEST_F(HandlersTest, EchoWithLogprobsAndNoOutputScoresThePrompt) {
  world_.engine.AnswerWith({9});
  v1::CompletionRequest request = TokenRequest({10, 11, 12});
  request.mutable_sampling()->set_max_tokens(0);
  request.set_echo(true);
  request.set_logprobs(1);
  const auto response = Complete(request);
  ASSERT_TRUE(response.ok()) << response.status();
  const v1::CompletionChoice& choice = response->choices(0);
  ASSERT_EQ(choice.logprobs_size(), 3);
  EXPECT_FALSE(choice.logprobs(0).has_logprob());
  EXPECT_EQ(choice.logprobs(2).logprob(), -2.0f);
  EXPECT_EQ(choice.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response->usage().completion_tokens(), 0);
  EXPECT_EQ(LastSampling().n_prompt_logprobs, 1);
}

TEST_F(HandlersTest, EchoWithoutLogprobsAndOutputIsThePrompt) {
  world_.engine.AnswerWith({9});
  v1::CompletionRequest request = TextRequest("as it was");
  request.mutable_sampling()->set_max_tokens(0);
  request.set_echo(true);
  const auto response = Complete(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->choices(0).text(), "as it was");
  EXPECT_EQ(response->choices(0).logprobs_size(), 0);
}

TEST_F(HandlersTest, AStopStringEndsTheWorkAtOnceAndIsTold) {
  v1::CompletionRequest request = TextRequest("x");
  request.mutable_sampling()->add_stop(" euros");
  request.mutable_sampling()->set_max_tokens(1000);
  auto call = world_.completion->Stream(request, {});
  ASSERT_TRUE(call.ok());
  // Nobody has asked for a chunk yet: a slow reader does not keep the engine working.
  const Submitted submitted = world_.engine.WaitForSubmit(0);
  submitted.events->Push(Tokens(Encode("It is six euros for")));
  EXPECT_TRUE(world_.engine.WaitForFinish(submitted.events->id()));
  auto chunk = NextOf(**call);
  ASSERT_TRUE(chunk.ok() && chunk->has_value());
  EXPECT_EQ((*chunk)->choice().text(), "It is six");
  EXPECT_EQ((*chunk)->choice().stop_string(), " euros");
  EXPECT_EQ(world_.engine.n_cancelled(), 0u) << "a stop string is a success";
}

TEST_F(HandlersTest, DestroyingACallCancelsItsRequest) {
  auto call = world_.completion->Stream(TextRequest("x"), {});
  ASSERT_TRUE(call.ok());
  const RequestId id = world_.engine.WaitForSubmit(0).events->id();
  call->reset();
  EXPECT_TRUE(world_.engine.WaitForCancel(id));
  EXPECT_EQ(world_.WaitForRecord(0).status.code(), absl::StatusCode::kCancelled);

  auto unary = world_.completion->Create(TextRequest("x"), {}, [](auto) { FAIL() << "nobody waits"; });
  ASSERT_TRUE(unary.ok());
  unary->reset();
  EXPECT_TRUE(world_.engine.WaitForCancel(world_.engine.WaitForSubmit(1).events->id()));
}

TEST_F(HandlersTest, CancelAnswersThePendingRead) {
  auto call = world_.completion->Stream(TextRequest("x"), {});
  ASSERT_TRUE(call.ok());
  absl::Notification answered;
  StatusOr<std::optional<v1::CompletionChunk>> result;
  (*call)->Next([&](StatusOr<std::optional<v1::CompletionChunk>> chunk) {
    result = std::move(chunk);
    answered.Notify();
  });
  (*call)->Cancel();
  ASSERT_TRUE(answered.WaitForNotificationWithTimeout(kPatience));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
}

TEST_F(HandlersTest, TheEnginesErrorsArrive) {
  world_.engine.on_submit = [](const Submitted& s) {
    TokenEvent event = Finished(FinishReason::kCancelled);
    event.status = Status(absl::StatusCode::kDeadlineExceeded, "the deadline has passed");
    s.events->Push(event);
  };
  EXPECT_EQ(Complete(TextRequest("x")).status().code(), absl::StatusCode::kDeadlineExceeded);
  world_.engine.refusal = ResourceExhausted("the queue is full");
  EXPECT_EQ(Complete(TextRequest("x")).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(HandlersTest, ARefusedPromptCancelsTheOnesBeforeIt) {
  world_.engine.on_submit = [this](const Submitted&) { world_.engine.refusal = ResourceExhausted("full"); };
  v1::CompletionRequest request = TextRequest("a");
  request.add_prompts()->set_text("b");
  EXPECT_EQ(Complete(request).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(world_.engine.WaitForCancel(1));
}

TEST_F(HandlersTest, DefaultsComeFromTheModelAndThenFromTheApi) {
  world_.engine.AnswerWith({9});
  ASSERT_TRUE(Complete(TextRequest("x")).ok());
  EXPECT_EQ(LastSampling().max_tokens, 16);
  EXPECT_EQ(LastSampling().temperature, 1.0f);
  EXPECT_THAT(LastSampling().stop_token_ids, ElementsAre(4, 0));
  ASSERT_TRUE(Chat(ChatRequest("x")).ok());
  const Submitted chat = world_.engine.WaitForSubmit(1);
  EXPECT_EQ(chat.request.sampling.max_tokens, 2048 - static_cast<int>(chat.request.prompt.size()));

  world_.engine.model.default_max_new_tokens = 64;
  world_.engine.model.default_temperature = 0.25;
  world_.engine.model.default_top_p = 0.5;
  world_.engine.model.default_top_k = 7;
  ASSERT_TRUE(Complete(TextRequest("x")).ok());
  EXPECT_EQ(LastSampling().max_tokens, 64);
  EXPECT_EQ(LastSampling().temperature, 0.25f);
  EXPECT_EQ(LastSampling().top_p, 0.5f);
  EXPECT_EQ(LastSampling().top_k, 7);

  v1::CompletionRequest request = TextRequest("x");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(-1);
  request.mutable_sampling()->set_seed(5);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->add_stop_token_ids(77);
  request.set_cache_salt("salt");
  request.set_priority(-3);
  ASSERT_TRUE(Complete(request).ok());
  EXPECT_EQ(LastSampling().temperature, 0);
  EXPECT_EQ(LastSampling().top_k, 0);
  EXPECT_EQ(LastSampling().seed, 5u);
  EXPECT_THAT(LastSampling().stop_token_ids, ElementsAre(77));
  const Submitted last = world_.engine.WaitForSubmit(world_.engine.n_submitted() - 1);
  EXPECT_EQ(last.request.cache_salt, "salt");
  EXPECT_EQ(last.request.priority, -3);
}

TEST_F(HandlersTest, MaxTokensLeftOutIsCutToWhatIsLeft) {
  world_.engine.AnswerWith({9});
  ASSERT_TRUE(Complete(TokenRequest(std::vector<int32_t>(2040, 10))).ok());
  EXPECT_EQ(LastSampling().max_tokens, 8);
}

TEST_F(HandlersTest, EachRequestLeavesOneRecord) {
  world_.engine.AnswerWith(Encode("six euros"));
  CallContext context;
  context.request_id = "r-1";
  context.transport = "http";
  v1::CompletionRequest request = TextRequest("How much?");
  request.mutable_sampling()->set_max_tokens(3);
  ASSERT_TRUE(CreateNow<v1::CompletionResponse>(*world_.completion, request, context).ok());
  const RequestRecord good = world_.WaitForRecord(0);
  EXPECT_EQ(good.id, "r-1");
  EXPECT_EQ(good.transport, "http");
  EXPECT_EQ(good.completion_tokens, 3);
  EXPECT_EQ(good.finish, "length");
  EXPECT_TRUE(good.first_token.has_value());
  request.set_logprobs(99);
  EXPECT_FALSE(CreateNow<v1::CompletionResponse>(*world_.completion, request, context).ok());
  const RequestRecord bad = world_.WaitForRecord(1);
  EXPECT_EQ(bad.finish, "INVALID_ARGUMENT");
  EXPECT_EQ(world_.engine.WaitForSubmit(0).request.name, "r-1");
}

TEST_F(HandlersTest, TokenizeAndDetokenizeAreInverse) {
  v1::TokenizeRequest request;
  request.set_prompt("Grüße aus 東京 <|end|>");
  const auto tokens = world_.info->Tokenize(request);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->count(), tokens->tokens_size());
  EXPECT_EQ(tokens->max_model_len(), 2048);
  EXPECT_THAT(tokens->tokens(), testing::Not(testing::Contains(4))) << "special strings of a user are text";
  v1::DetokenizeRequest back;
  *back.mutable_tokens() = tokens->tokens();
  EXPECT_EQ(world_.info->Detokenize(back)->prompt(), request.prompt());
  back.add_tokens(123456);
  const Status status = world_.info->Detokenize(back).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("123456"));
  EXPECT_EQ(GetErrorParam(status), fmt::format("tokens[{}]", back.tokens_size() - 1));
}

}  // namespace
}  // namespace t6::server
