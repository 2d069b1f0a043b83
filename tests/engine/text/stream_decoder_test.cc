#include "engine/text/stream_decoder.h"

#include <chrono>
#include <random>

#include "engine/text/utf8.h"
#include "tests/engine/text/text_support.h"

namespace t6 {
namespace {

// The pieces, each of them checked to be whole characters.
std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  StreamDecoder decoder(&tokenizer, skip_special);
  std::string text;
  for (const int32_t id : ids) {
    const auto piece = decoder.Push(id);
    EXPECT_TRUE(piece.ok()) << piece.status();
    if (!piece.ok()) return text;
    EXPECT_EQ(FirstInvalidUtf8(*piece), std::string::npos);
    text += *piece;
  }
  return text + decoder.Flush();
}

TEST(StreamDecoder, JoinedPiecesAreTheDecodedWholeForRandomIds) {
  std::mt19937 random(7);
  for (const std::string& name : kTokenizers) {
    const auto tokenizer = LoadTokenizer(name);
    std::vector<int32_t> bytes;  // tokens of single bytes, where a character falls apart
    for (int32_t id = 0; id < tokenizer->n_tokens(); ++id) {
      if (tokenizer->TokenBytes(id).size() == 1) bytes.push_back(id);
    }
    ASSERT_GT(bytes.size(), 30u);
    for (int round = 0; round < 200; ++round) {
      std::vector<int32_t> ids(random() % 40);
      for (int32_t& id : ids) {
        id = round % 2 == 0 ? static_cast<int32_t>(random() % tokenizer->n_tokens())
                            : bytes[random() % bytes.size()];
      }
      for (const bool skip_special : {true, false}) {
        ASSERT_EQ(Streamed(*tokenizer, ids, skip_special), *tokenizer->Decode(ids, skip_special))
            << name << ": " << testing::PrintToString(ids);
      }
    }
  }
}

TEST(StreamDecoder, TextComesOutAsTokensGoIn) {
  const std::string text = "The museum opened in 1931 \xE2\x80\x94 in Graz. \xF0\x9F\x98\x80!";
  for (const std::string& name : kTokenizers) {
    const auto tokenizer = LoadTokenizer(name);
    if (name == "unigram") continue;  // has no token for the signs
    const auto ids = *tokenizer->Encode(text, false);
    StreamDecoder decoder(tokenizer.get());
    std::string so_far;
    for (size_t i = 0; i < ids.size(); ++i) {
      so_far += *decoder.Push(ids[i]);
      // At every token that ends a character, all text is out.
      const std::string all = *tokenizer->Decode(absl::MakeConstSpan(ids.data(), i + 1), true);
      if (text.starts_with(all) && !tokenizer->IsByteToken(ids[i])) {
        EXPECT_EQ(so_far, all) << name;
      }
    }
    EXPECT_EQ(so_far + decoder.Flush(), text) << name;
  }
}

TEST(StreamDecoder, AnIncompleteCharacterComesOutAtTheEndOnly) {
  for (const std::string name : {"shipped", "inst"}) {
    const auto tokenizer = LoadTokenizer(name);
    auto ids = *tokenizer->Encode("\xF0\x9F\xA6\x9C", false);
    ids.pop_back();
    StreamDecoder decoder(tokenizer.get());
    for (const int32_t id : ids) EXPECT_EQ(*decoder.Push(id), "") << name;
    const std::string rest = decoder.Flush();
    EXPECT_TRUE(rest.starts_with("\xEF\xBF\xBD")) << name;
    EXPECT_EQ(rest, *tokenizer->Decode(ids, true)) << name;
    EXPECT_EQ(decoder.Flush(), "") << name;
  }
}

TEST(StreamDecoder, SpecialTokensAreLeftOutOrShown) {
  const auto tokenizer = LoadTokenizer("shipped");
  EXPECT_EQ(Streamed(*tokenizer, {54, 4, 37}, true), "RA");
  EXPECT_EQ(Streamed(*tokenizer, {54, 4, 37}, false), "R<|end|>A");
}

TEST(StreamDecoder, AnIdWithoutEntryIsAnErrorAndNothingElse) {
  for (const std::string name : {"shipped", "unigram"}) {
    const auto tokenizer = LoadTokenizer(name);
    StreamDecoder decoder(tokenizer.get());
    std::string text = *decoder.Push(50);
    EXPECT_EQ(decoder.Push(1 << 20).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(decoder.Push(-1).status().code(), absl::StatusCode::kInvalidArgument);
    text += *decoder.Push(51);
    text += decoder.Flush();
    EXPECT_EQ(text, *tokenizer->Decode({{50, 51}}, true)) << name;
  }
}

// A window that grew with the text would make this quadratic: 100,000 decodes of up to 100,000 tokens.
TEST(StreamDecoder, CostDoesNotGrowWithTheText) {
  for (const std::string name : {"shipped", "inst", "unigram"}) {
    const auto tokenizer = LoadTokenizer(name);
    for (const std::string unit : {"a", " ", "\xC3\xA9"}) {
      const auto ids = *tokenizer->Encode(unit, false);
      StreamDecoder decoder(tokenizer.get());
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < 100'000; ++i) ASSERT_TRUE(decoder.Push(ids.back()).ok());
      decoder.Flush();
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60))
          << name << " '" << unit << "'";
    }
  }
}

}  // namespace
}  // namespace t6
