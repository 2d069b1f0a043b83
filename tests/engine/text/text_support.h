// What the text room's tests share: the tokenizers of tests/goldens/text, what Hugging Face makes of them
// (golden.json, written by make_goldens.py there), and folders of files made on the spot.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace t6 {

inline const std::vector<std::string> kTokenizers = {"shipped", "llama3", "chatml", "inst", "unigram"};

inline std::filesystem::path TokenizerFolder(const std::string& name) {
  const std::filesystem::path source = T6_SOURCE_DIR;
  return name == "shipped" ? source / "models/t6-docqa-14m" : source / "tests/goldens/text" / name;
}

inline nlohmann::json Golden(const std::string& name) {
  std::ifstream in(std::filesystem::path(T6_SOURCE_DIR) / "tests/goldens/text/golden.json");
  return nlohmann::json::parse(in).at(name);
}

inline std::unique_ptr<Tokenizer> LoadTokenizer(const std::string& name) {
  auto tokenizer = Tokenizer::Load(TokenizerFolder(name));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

inline std::unique_ptr<ChatTemplate> LoadTemplate(const std::string& name) {
  auto chat_template = ChatTemplate::Load(TokenizerFolder(name));
  EXPECT_TRUE(chat_template.ok()) << chat_template.status();
  return chat_template.ok() ? *std::move(chat_template) : nullptr;
}

// A folder with these files that goes away with the test.
class TempFolder {
 public:
  explicit TempFolder(std::initializer_list<std::pair<std::string, std::string>> files) {
    std::string name = (std::filesystem::temp_directory_path() / "t6_text_XXXXXX").string();
    path_ = mkdtemp(name.data());
    for (const auto& [file, content] : files) std::ofstream(path_ / file, std::ios::binary) << content;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string ReadAll(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace t6
