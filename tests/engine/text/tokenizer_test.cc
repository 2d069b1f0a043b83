#include "engine/text/tokenizer.h"

#include <gmock/gmock.h>

#include "tests/engine/text/text_support.h"

namespace t6 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<int32_t>;

TEST(Tokenizer, EncodesAsHuggingFaceDoes) {
  for (const std::string& name : kTokenizers) {
    const auto tokenizer = LoadTokenizer(name);
    const auto golden = Golden(name);
    EXPECT_EQ(tokenizer->n_tokens(), golden["n_tokens"].get<int>());
    ASSERT_FALSE(golden["encode"].empty());
    for (const auto& item : golden["encode"]) {
      const std::string text = item["text"];
      EXPECT_EQ(*tokenizer->Encode(text, false), item["ids"].get<Ids>()) << name << ": " << text;
      EXPECT_EQ(*tokenizer->Encode(text, true), item["with_special"].get<Ids>()) << name << ": " << text;
    }
  }
}

TEST(Tokenizer, DecodesAsHuggingFaceDoes) {
  for (const std::string& name : kTokenizers) {
    const auto tokenizer = LoadTokenizer(name);
    const auto golden = Golden(name);
    ASSERT_FALSE(golden["decode"].empty());
    for (const auto& item : golden["decode"]) {
      EXPECT_EQ(*tokenizer->Decode(item["ids"].get<Ids>(), true), item["text"].get<std::string>()) << name;
      EXPECT_EQ(*tokenizer->Decode(item["ids"].get<Ids>(), false), item["with_special"].get<std::string>())
          << name;
    }
  }
}

// No text may turn into a special token, wherever the special string stands and whatever the model looks up.
TEST(Tokenizer, SpecialStringsInATextStayText) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {"shipped", {"<|end|>", "<|user|>", "<|endoftext|>"}},
      {"llama3", {"<|begin_of_text|>", "<|eot_id|>"}},
      {"chatml", {"<|im_start|>", "<|im_end|>"}},
      {"inst", {"<s>", "</s>", "[INST]", "<unk>"}},
      {"unigram", {"<s>", "</s>", "<unk>"}}};
  for (const auto& [name, strings] : cases) {
    const auto tokenizer = LoadTokenizer(name);
    for (const std::string& special : strings) {
      for (const std::string& text :
           {special, fmt::format("a {} b", special), special + special, fmt::format("x{}y", special)}) {
        const auto ids = tokenizer->Encode(text, false);
        ASSERT_TRUE(ids.ok()) << ids.status();
        for (const int32_t id : *ids)
          EXPECT_FALSE(tokenizer->IsSpecial(id)) << name << ": " << text << " gives " << id;
        EXPECT_EQ(*tokenizer->Decode(*ids, false), text) << name;
      }
    }
  }
}

TEST(Tokenizer, AddedTokensThatAreNotSpecialMatch) {
  const auto tokenizer = LoadTokenizer("chatml");
  EXPECT_THAT(*tokenizer->Encode("<think>", false), ElementsAre(603));
  EXPECT_FALSE(tokenizer->IsSpecial(603));
}

TEST(Tokenizer, KnowsItsEndOfSequence) {
  EXPECT_EQ(LoadTokenizer("shipped")->eos_token_id(), 4);
  EXPECT_EQ(LoadTokenizer("llama3")->eos_token_id(), 704);
  const TempFolder bare({{"tokenizer.json", ReadAll(TokenizerFolder("chatml") / "tokenizer.json")}});
  const auto tokenizer = Tokenizer::Load(bare.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->eos_token_id(), std::nullopt);
}

TEST(Tokenizer, TokenBytesAreWhatATokenStandsForInsideAText) {
  const auto shipped = LoadTokenizer("shipped");
  EXPECT_EQ(shipped->TokenBytes(37), "A");
  EXPECT_EQ(shipped->TokenBytes(203), "\n");
  EXPECT_EQ(shipped->TokenBytes(4), "<|end|>");
  const auto split = *shipped->Encode("\xF0\x9F\xA6\x9C", false);  // a parrot: no token of its own
  ASSERT_GT(split.size(), 1u);
  std::string bytes;
  for (const int32_t id : split) bytes += shipped->TokenBytes(id);
  EXPECT_EQ(bytes, "\xF0\x9F\xA6\x9C");
  EXPECT_THAT(shipped->TokenText(split[0]), HasSubstr("\xEF\xBF\xBD"));

  const auto inst = LoadTokenizer("inst");
  const auto byte = *inst->Encode("\xC3\xA9", false);
  EXPECT_TRUE(inst->IsByteToken(byte.back()));
  EXPECT_EQ(inst->TokenBytes(byte.back()), "\xA9");
  EXPECT_EQ(inst->TokenText(byte.back()), "\xEF\xBF\xBD");
  const auto word = *inst->Encode("a", false);
  EXPECT_EQ(inst->TokenBytes(word[0]).front(), ' ')
      << "a leading space is only dropped at a text's beginning";
}

TEST(Tokenizer, AnIdWithoutEntryIsNamed) {
  const auto tokenizer = LoadTokenizer("shipped");
  for (const int32_t id : {-1, 8192, 1 << 30, INT32_MIN}) {
    const auto text = tokenizer->Decode({{1, id}}, true);
    ASSERT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(MessageOf(text.status())), HasSubstr(std::to_string(id)));
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

TEST(Tokenizer, TextThatIsNotUtf8IsRefusedAtItsByte) {
  const auto tokenizer = LoadTokenizer("shipped");
  const auto ids = tokenizer->Encode("good \xFF", false);
  ASSERT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(MessageOf(ids.status())), HasSubstr("byte 5"));
}

TEST(Tokenizer, LongTextsOfOneKindAreEncodedWhole) {
  for (const std::string& name : kTokenizers) {
    const auto tokenizer = LoadTokenizer(name);
    for (const char c : {' ', 'a', '\n', '<'}) {
      const std::string text(50'000, c);
      const auto ids = tokenizer->Encode(text, false);
      ASSERT_TRUE(ids.ok()) << ids.status();
      // (Metaspace takes a leading space for its own prefix.)
      EXPECT_GE(tokenizer->Decode(*ids, false)->size(), text.size() - 1) << name << " '" << c << "'";
    }
  }
}

TEST(Tokenizer, NoTextHasMoreBytesForATokenThanItSays) {
  EXPECT_EQ(LoadTokenizer("shipped")->most_bytes_per_token(), 3 * 16u);
  EXPECT_EQ(LoadTokenizer("unigram")->most_bytes_per_token(), 256u) << "its tokens are not bytes";
  for (const std::string& name : kTokenizers) {
    const auto tokenizer = LoadTokenizer(name);
    if (!tokenizer->DecodesByBytes()) continue;  // one token may stand for a whole unknown text
    // Runs and long words, and what a normaliser shortens: a letter with three marks, Hangul in its parts.
    for (const char* piece : {" ", "\n", "=", "-", " the", " international",
                              "\xCE\xB1\xCC\x93\xCC\x81\xCD\x85", "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"}) {
      std::string text;
      while (text.size() < 20'000) text += piece;
      const size_t n_tokens = tokenizer->Encode(text, false)->size();
      EXPECT_LE(text.size(), n_tokens * tokenizer->most_bytes_per_token()) << name << " '" << piece << "'";
    }
  }
}

TEST(Tokenizer, LoadSaysWhatIsWrongWithTheFiles) {
  const auto load = [](std::initializer_list<std::pair<std::string, std::string>> files) {
    const TempFolder folder(files);
    return Tokenizer::Load(folder.path()).status();
  };
  const std::string good = ReadAll(TokenizerFolder("chatml") / "tokenizer.json");
  EXPECT_EQ(load({}).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(MessageOf(load({}))), HasSubstr("tokenizer.json"));
  const std::vector<std::string> broken = {
      "",
      "{",
      "[]",
      "null",
      "{}",
      "{\"model\": {\"type\": \"BPE\"}}",
      "\xFF\xFE",
      good.substr(0, good.size() / 2),
      std::string(100'000, '['),
      "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}",
      "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4294967295},\"merges\":[]}}"};
  for (const std::string& json : broken) {
    EXPECT_EQ(load({{"tokenizer.json", json}}).code(), absl::StatusCode::kInvalidArgument)
        << json.substr(0, 80);
  }
  EXPECT_EQ(load({{"tokenizer.json", good}, {"tokenizer_config.json", "{\"eos"}}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(load({{"tokenizer.json", good}, {"tokenizer_config.json", "{\"eos_token\": {\"content\": 3}}"}}),
            absl::OkStatus());
}

// The library would quietly give the token another id than the model was trained with.
TEST(Tokenizer, AnAddedTokenWithAnIdOfItsOwnIsRefused) {
  auto json = nlohmann::json::parse(ReadAll(TokenizerFolder("chatml") / "tokenizer.json"));
  json["added_tokens"][0]["id"] = 9000;
  const TempFolder folder({{"tokenizer.json", json.dump()}});
  const Status status = Tokenizer::Load(folder.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(MessageOf(status)), HasSubstr("9000"));
}

}  // namespace
}  // namespace t6
