#include "clients/cli/bench/prompt_files.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "clients/cli/text.h"

namespace t6::cli {
namespace {

using Json = nlohmann::json;
constexpr uintmax_t kLargestFile = uintmax_t{256} << 20;

// A string member, or nothing.
const std::string* Text(const Json& object, const char* name) {
  const auto member = object.is_object() ? object.find(name) : object.end();
  if (!object.is_object() || member == object.end()) return nullptr;
  return member->get_ptr<const std::string*>();
}

std::string AddDocument(const Json& entry, const std::string& instruction, int number,
                        std::vector<BenchPrompt>& prompts) {
  const std::string* document = Text(entry, "document");
  if (document == nullptr) return "has no \"document\" that is a string";
  const auto questions = entry.find("questions");
  if (questions == entry.end() || !questions->is_array() || questions->empty())
    return "has no list of \"questions\"";
  const DocumentPrompts about(instruction, *document, number);
  for (const Json& question : *questions) {
    const std::string* text = question.get_ptr<const std::string*>();
    if (text == nullptr) text = Text(question, "question");
    if (text == nullptr || Trim(*text).empty())
      return "has a question that is neither a text nor {\"question\": text}";
    prompts.push_back(about.Ask(*text));
  }
  return "";
}

std::string AddConversation(const Json& line, std::map<std::string, int>& documents,
                            std::vector<BenchPrompt>& prompts) {
  const Json* messages = &line;
  if (line.is_object()) {
    const auto member = line.find("messages");
    if (member == line.end()) return "has no \"messages\"";
    messages = &*member;
  }
  if (!messages->is_array() || messages->empty()) return "has no list of messages";
  BenchPrompt prompt;
  for (const Json& message : *messages) {
    const std::string *role = Text(message, "role"), *content = Text(message, "content");
    if (role == nullptr || content == nullptr)
      return "has a message without \"role\" and \"content\" that are strings";
    prompt.messages.push_back({*role, std::make_shared<std::string>(*content)});
  }
  // Conversations that start alike share what a balancer would hash.
  prompt.context = ContextKey(*prompt.messages[0].content);
  prompt.document = documents.emplace(prompt.context, static_cast<int>(documents.size())).first->second;
  prompts.push_back(std::move(prompt));
  return "";
}

}  // namespace

std::string ParsePrompts(std::string_view text, const std::string& path, const std::string& instruction,
                         std::vector<BenchPrompt>& prompts) {
  const Json whole = Json::parse(text, nullptr, false);
  if (whole.is_array() && !whole.empty() && whole[0].is_object() && whole[0].contains("document")) {
    for (size_t i = 0; i < whole.size(); ++i) {
      const std::string error = AddDocument(whole[i], instruction, static_cast<int>(i), prompts);
      if (!error.empty()) return fmt::format("{}: entry {} {}", path, i + 1, error);
    }
    return "";
  }
  std::map<std::string, int> documents;
  int number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = Trim(text.substr(at, end - at));
    at = end + 1;
    ++number;
    if (line.empty()) continue;
    const Json json = Json::parse(line, nullptr, false);
    const std::string error = json.is_discarded() ? "is not JSON" : AddConversation(json, documents, prompts);
    if (!error.empty()) return fmt::format("{}:{}: the line {}", path, number, error);
  }
  return prompts.empty() ? fmt::format("{} holds no prompt", path) : "";
}

std::string ReadPrompts(const std::string& path, const std::string& instruction,
                        std::vector<BenchPrompt>& prompts) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return fmt::format("cannot read the prompts '{}': {}", path, error.message());
  if (size > kLargestFile)
    return fmt::format("the prompts '{}' have {} bytes, more than {}", path, size, kLargestFile);
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file && !file.eof()) return fmt::format("cannot read the prompts '{}'", path);
  return ParsePrompts(text, path, instruction, prompts);
}

}  // namespace t6::cli
