// Prompts: made up, from files, and their order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>

#include "clients/cli/bench/prompt_files.h"
#include "clients/cli/bench/synthetic.h"
#include "clients/cli/bench/workload.h"

namespace t6::cli {
namespace {

using testing::HasSubstr;

TEST(SyntheticTest, SameSeedSameDocument) {
  const auto one = MakeDocument(5, 3, 200, 8), again = MakeDocument(5, 3, 200, 8);
  EXPECT_EQ(one.text, again.text);
  EXPECT_EQ(one.questions, again.questions);
  EXPECT_NE(one.text, MakeDocument(6, 3, 200, 8).text);
  EXPECT_NE(one.text.substr(0, 40), MakeDocument(5, 4, 200, 8).text.substr(0, 40));
}

TEST(SyntheticTest, HasItsWordsAndDifferentQuestionsAboutWhatItSays) {
  for (const int words : {8, 100, 5000}) {
    const auto made = MakeDocument(1, 0, words, 8);
    const auto n = std::count(made.text.begin(), made.text.end(), ' ') + 1;
    EXPECT_GE(n, words);
    EXPECT_LE(n, words + 12);
    EXPECT_EQ(std::set(made.questions.begin(), made.questions.end()).size(), 8);
  }
}

TEST(WorkloadTest, EveryPromptOncePerRoundInAnOrderOfTheSeed) {
  std::vector<BenchPrompt> prompts;
  for (int document = 0; document < 5; ++document)
    for (const char* question : {"a", "b", "c"})
      prompts.push_back(DocumentPrompts("i", std::to_string(document), document).Ask(question));
  Workload one(prompts, 1), again(prompts, 1), other(prompts, 2);
  EXPECT_EQ(one.documents(), 5);
  bool differs = false;
  for (int round = 0; round < 3; ++round) {
    std::set<std::pair<int, std::string>> asked;
    for (size_t i = 0; i < prompts.size(); ++i) {
      const BenchPrompt& prompt = one.Next();
      EXPECT_EQ(&*prompt.messages[1].content, &*again.Next().messages[1].content);
      differs |= *prompt.messages[1].content != *other.Next().messages[1].content;
      asked.emplace(prompt.document, *prompt.messages[1].content);
    }
    EXPECT_EQ(asked.size(), prompts.size());
  }
  EXPECT_TRUE(differs);
}

TEST(WorkloadTest, APromptIsWhatTheProductAsks) {
  const BenchPrompt prompt = DocumentPrompts("Answer.", "The text.", 4).Ask("  Who? \n");
  ASSERT_EQ(prompt.messages.size(), 2);
  EXPECT_EQ(prompt.messages[0].role, "system");
  EXPECT_EQ(*prompt.messages[0].content, "Answer.\n\nThe text.");
  EXPECT_EQ(*prompt.messages[1].content, "Who?");
  EXPECT_EQ(prompt.document, 4);
  EXPECT_EQ(prompt.context, ContextKey("Answer.\n\nThe text."));
  EXPECT_NE(prompt.context, ContextKey("Answer.\n\nThe text"));
}

TEST(PromptFilesTest, DocumentsWithQuestions) {
  std::vector<BenchPrompt> prompts;
  ASSERT_EQ(ParsePrompts(R"([{"document": "d", "questions": ["a?", {"question": "b?", "answer": "x"}]},
                             {"document": "e", "questions": ["c?"]}])",
                         "f", "I", prompts),
            "");
  ASSERT_EQ(prompts.size(), 3);
  EXPECT_EQ(*prompts[1].messages[0].content, "I\n\nd");
  EXPECT_EQ(*prompts[1].messages[1].content, "b?");
  EXPECT_EQ(prompts[2].document, 1);
}

TEST(PromptFilesTest, TheFileThatShips) {
  std::vector<BenchPrompt> prompts;
  ASSERT_EQ(ReadPrompts(T6_SOURCE_DIR "/bench/data/template-documents.json", "I", prompts), "");
  EXPECT_GT(prompts.size(), 500);
}

TEST(PromptFilesTest, LinesOfConversations) {
  std::vector<BenchPrompt> prompts;
  ASSERT_EQ(
      ParsePrompts("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n\n"
                   "[{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"a\"}]\n"
                   "[{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"b\"}]",
                   "f", "I", prompts),
      "");
  ASSERT_EQ(prompts.size(), 3);
  EXPECT_NE(prompts[0].document, prompts[1].document);
  EXPECT_EQ(prompts[1].document, prompts[2].document);
  EXPECT_EQ(prompts[1].context, prompts[2].context);
}

TEST(PromptFilesTest, WhatIsWrongIsSaidWithItsPlace) {
  const std::map<std::string, std::string> wrong = {
      {"", "holds no prompt"},
      {"\n\n", "holds no prompt"},
      {"[]", "f:1"},
      {"hello", "f:1: the line is not JSON"},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n{\"messages\": 3}", "f:2"},
      {R"({"messages": [{"role": "user", "content": ["x"]}]})", "f:1"},
      {R"({"message": []})", "\"messages\""},
      {R"([{"document": "d"}])", "entry 1 has no list of \"questions\""},
      {R"([{"document": "d", "questions": ["a"]}, {"document": 3, "questions": ["a"]}])", "entry 2"},
      {R"([{"document": "d", "questions": [" "]}])", "question"},
      {R"([{"document": "d", "questions": [["a"]]}])", "question"},
      {R"([{"document": "d", "questions": ["a"]}, 7])", "entry 2"},
      {"\"\xFF\"", "not JSON"},
  };
  for (const auto& [text, said] : wrong) {
    std::vector<BenchPrompt> prompts;
    EXPECT_THAT(ParsePrompts(text, "f", "I", prompts), HasSubstr(said)) << text;
  }
  std::vector<BenchPrompt> prompts;
  EXPECT_THAT(ReadPrompts("/no/such/file", "I", prompts), HasSubstr("/no/such/file"));
}

}  // namespace
}  // namespace t6::cli
