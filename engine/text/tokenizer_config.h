// What tokenizer_config.json and its neighbours say besides the vocabulary. Read once, at start.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "engine/base/status.h"

namespace t6 {

struct TokenizerConfig {
  // bos_token, eos_token, pad_token, ... -> text: the variables that a chat template sees.
  std::map<std::string, std::string> special_tokens;
  // chat_template.jinja where it is there (as transformers prefers it), else the config's own, "default" of
  // several.
  std::optional<std::string> chat_template;
};

// A file that is absent says nothing; one that is malformed is INVALID_ARGUMENT.
StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::filesystem::path& directory);

}  // namespace t6
