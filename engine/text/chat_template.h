// A model's Jinja chat template (minijinja with Python-compatible methods, fuel-limited), from a folder or a
// file. Immutable, thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/text/tokenizer.h"

namespace t6 {

struct ChatMessage {
  std::string role;  // system, developer, user, assistant, tool: checked by Render
  std::string content;
  std::string name;  // optional
};

struct ChatOptions {
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // the last message is left open; excludes add_generation_prompt
};

struct RenderedChat {
  std::string text;             // the prompt as a person would read it
  std::vector<int32_t> tokens;  // special tokens only where the template itself put them
};

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;

  // From tokenizer_config.json's chat_template (or chat_template.jinja) of `directory`.
  // NOT_FOUND: the model has none; the message says that --chat-template can name one.
  static StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::filesystem::path& directory);
  static StatusOr<std::unique_ptr<ChatTemplate>> LoadFile(const std::filesystem::path& file,
                                                          const std::filesystem::path& tokenizer_directory);

  // Every string of the messages is marked before rendering; the result is cut only at special tokens outside
  // marks, and the text between two cuts is encoded as one piece with special parsing off. Equal to Hugging
  // Face on benign text.
  virtual StatusOr<RenderedChat> Render(const std::vector<ChatMessage>& messages, const ChatOptions& options,
                                        const Tokenizer& tokenizer) const = 0;
};

}  // namespace t6
