#include "server/text_stream.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "tests/server/served_world.h"

namespace t6::server {
namespace {

const char kText[] = "Grüße aus 東京! 🦊 The fee is 12 €, naïve café — ok.\n\nEND of it";

// Consumes `events` and checks every piece on the way.
TextDelta Stream(const std::vector<TokenEvent>& events, TextStreamOptions options,
                 int* completion_tokens = nullptr, std::vector<int32_t> prompt = {1}) {
  TextStream stream(&RealTokenizer(), std::move(prompt), std::move(options));
  TextDelta all;
  for (const TokenEvent& event : events) {
    auto delta = stream.Consume(event);
    EXPECT_TRUE(delta.ok()) << delta.status();
    EXPECT_NO_THROW(nlohmann::json(delta->text).dump()) << "a piece holds part of a character";
    all.Append(*std::move(delta));
  }
  EXPECT_TRUE(stream.finished());
  if (completion_tokens != nullptr) *completion_tokens = stream.completion_tokens();
  return all;
}

// The same tokens, merged into events at random; the finish comes with the last tokens or alone.
std::vector<TokenEvent> Split(const std::vector<int32_t>& ids, TokenEvent end, std::mt19937& random) {
  std::vector<TokenEvent> events(1);
  for (int32_t id : ids) {
    if (random() % 3 == 0) events.emplace_back();
    events.back().tokens.push_back(Token(id, -static_cast<float>(id % 7)));
  }
  if (end.stop_token < 0 && random() % 2 == 0) events.emplace_back();
  events.back().finish = end.finish;
  events.back().stop_token = end.stop_token;
  return events;
}

std::string Joined(const std::vector<v1::TokenLogprob>& logprobs) {
  std::string bytes;
  for (const v1::TokenLogprob& logprob : logprobs) bytes += logprob.bytes();
  return bytes;
}

TEST(TextStream, TextDoesNotDependOnHowEventsWereCut) {
  std::mt19937 random(2);
  const std::vector<int32_t> ids = Encode(kText);
  for (int trial = 0; trial < 200; ++trial) {
    TextStreamOptions options;
    options.logprobs = true;
    int completion_tokens = 0;
    const TextDelta all =
        Stream(Split(ids, Finished(FinishReason::kLength), random), options, &completion_tokens);
    ASSERT_EQ(all.text, kText);
    ASSERT_EQ(all.token_ids, ids);
    ASSERT_EQ(Joined(all.logprobs), kText);
    ASSERT_EQ(completion_tokens, static_cast<int>(ids.size()));
    ASSERT_EQ(all.finish, FinishReason::kLength);
  }
}

TEST(TextStream, StopStringsAtEveryPositionEndTheTextBeforeThem) {
  std::mt19937 random(3);
  const std::string text = kText;
  const std::vector<int32_t> ids = Encode(text);
  for (size_t start = 0; start < text.size(); ++start) {
    if ((text[start] & 0xC0) == 0x80) continue;  // inside a character
    for (size_t length = 1; length <= 9 && start + length <= text.size(); ++length) {
      if (start + length < text.size() && (text[start + length] & 0xC0) == 0x80) continue;
      const std::string stop = text.substr(start, length);
      TextStreamOptions options;
      options.stop = {"never in it", stop};
      options.logprobs = true;
      int completion_tokens = 0;
      const TextDelta all =
          Stream(Split(ids, Finished(FinishReason::kLength), random), options, &completion_tokens);
      const size_t at = text.find(stop);
      ASSERT_EQ(all.text, text.substr(0, at)) << stop;
      ASSERT_EQ(all.finish, FinishReason::kStop);
      ASSERT_EQ(all.stop_string, stop);
      // Tokens are counted up to the one that completed it, and no further.
      ASSERT_EQ(completion_tokens, static_cast<int>(all.token_ids.size()));
      ASSERT_EQ(all.logprobs.size(), all.token_ids.size());
      const std::string bytes = Joined(all.logprobs);
      ASSERT_GE(bytes.size(), at + length);
      ASSERT_LT(bytes.size() - RealTokenizer().TokenBytes(all.token_ids.back()).size(), at + length);
    }
  }
}

TEST(TextStream, StopTokensAreCountedButGiveNoText) {
  const std::vector<int32_t> word = Encode("word");
  std::vector<int32_t> ids = Encode("some");
  ids.push_back(word[0]);
  std::mt19937 random(4);
  TextDelta all = Stream(Split(ids, Finished(FinishReason::kStop, word[0]), random), {});
  EXPECT_EQ(all.text, "some");
  EXPECT_EQ(all.token_ids, ids);
  EXPECT_EQ(all.stop_token, word[0]);
  EXPECT_EQ(all.stop_string, std::nullopt);

  ids.back() = 4;  // <|end|>, special
  all = Stream(Split(ids, Finished(FinishReason::kLength), random), {});
  EXPECT_EQ(all.text, "some");
  EXPECT_EQ(all.token_ids, ids);
}

TEST(TextStream, AnUnfinishedCharacterComesOutAsReplacement) {
  const std::vector<int32_t> fox = Encode("🦊");
  ASSERT_GT(fox.size(), 1u) << "the test needs a character of several tokens";
  const TextDelta all = Stream({Tokens({fox[0]}), Finished(FinishReason::kLength)}, {});
  EXPECT_EQ(all.text, "\uFFFD");
}

TEST(TextStream, WithholdsTokensUntilTheirTextIsOut) {
  TextStreamOptions options;
  options.stop = {"six euros"};
  TextStream stream(&RealTokenizer(), {1}, options);
  const std::vector<int32_t> ids = Encode("It is six");
  const TextDelta delta = stream.Consume(Tokens(ids)).value();
  EXPECT_EQ(delta.text, "It is ");
  EXPECT_LT(delta.token_ids.size(), ids.size());
  const TextDelta end = stream.Consume(Finished(FinishReason::kLength)).value();
  EXPECT_EQ(end.text, "six");
  EXPECT_EQ(delta.token_ids.size() + end.token_ids.size(), ids.size());
}

TEST(TextStream, EchoGivesThePromptAndItsScoresFirst) {
  const std::vector<int32_t> prompt = Encode("The museum opened");
  TokenEvent scores;
  for (size_t i = 1; i < prompt.size(); ++i)
    scores.prompt_scores.push_back({prompt[i], -1.0f * i, {{7, -0.25f}}});
  TextStreamOptions options;
  options.echo = options.logprobs = true;
  const TextDelta all =
      Stream({scores, Tokens(Encode(" in")), Finished(FinishReason::kLength)}, options, nullptr, prompt);
  EXPECT_EQ(all.text, "The museum opened in");
  ASSERT_EQ(all.logprobs.size(), prompt.size() + all.token_ids.size());
  EXPECT_FALSE(all.logprobs[0].has_logprob());
  EXPECT_EQ(all.logprobs[0].token_id(), prompt[0]);
  EXPECT_EQ(all.logprobs[1].logprob(), -1.0f);
  EXPECT_EQ(all.logprobs[1].top(0).token_id(), 7);
  EXPECT_EQ(Joined(all.logprobs), all.text);
}

TEST(TextStream, EchoKeepsATextPromptAsItWasWritten) {
  TextStreamOptions options;
  options.echo = true;
  options.prompt_text = "<|end|> is text";
  const TextDelta all = Stream({Finished(FinishReason::kLength)}, options, nullptr, {4});
  EXPECT_EQ(all.text, "<|end|> is text");
}

TEST(TextStream, StopStringsAreNotLookedForInTheEcho) {
  TextStreamOptions options;
  options.echo = true;
  options.stop = {"museum"};
  const TextDelta all = Stream({Tokens(Encode(" in")), Finished(FinishReason::kLength)}, options, nullptr,
                               Encode("The museum"));
  EXPECT_EQ(all.text, "The museum in");
}

TEST(TextStream, WithoutATokenizerThereAreIdsAndNoText) {
  TextStreamOptions options;
  options.logprobs = true;
  TextStream stream(nullptr, {1}, options);
  const TextDelta delta = stream.Consume(Tokens({17, 99999})).value();
  EXPECT_EQ(delta.text, "");
  EXPECT_EQ(delta.token_ids, (std::vector<int32_t>{17, 99999}));
  EXPECT_EQ(delta.logprobs[0].token(), "token_id:17");
}

TEST(TextStream, RowsOfTheTableWithoutTextAreNoError) {
  const TextDelta all =
      Stream({Tokens({RealTokenizer().n_tokens() + 5}), Finished(FinishReason::kLength)}, {});
  EXPECT_EQ(all.text, "");
  EXPECT_EQ(all.token_ids.size(), 1u);
}

}  // namespace
}  // namespace t6::server
