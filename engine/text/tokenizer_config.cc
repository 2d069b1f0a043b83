#include "engine/text/tokenizer_config.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "engine/base/read_file.h"

namespace t6 {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxConfig = 16 << 20;
constexpr size_t kMaxTemplate = 256 << 10;

StatusOr<Json> ReadJsonObject(const std::filesystem::path& file) {
  T6_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(file, kMaxConfig));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("{}: not a JSON object", file.string());
  return json;
}

// The tokens stand as strings or as {"content": ...}.
void TakeSpecialTokens(const Json& json, std::map<std::string, std::string>* tokens) {
  for (const char* name :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    const auto found = json.find(name);
    if (found == json.end()) continue;
    const auto content = found->is_object() ? found->find("content") : found;
    if (found->is_object() && content == found->end()) continue;
    if (content->is_string()) tokens->emplace(name, content->get<std::string>());
  }
}

StatusOr<std::optional<std::string>> TemplateOf(const Json& json, const std::filesystem::path& file) {
  const auto found = json.find("chat_template");
  if (found == json.end() || found->is_null()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  std::vector<std::string> names;
  if (found->is_array()) {
    for (const Json& entry : *found) {
      if (!entry.is_object() || !entry.contains("name") || !entry["name"].is_string()) continue;
      names.push_back(entry["name"].get<std::string>());
      if (names.back() == "default" && entry.contains("template") && entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
  }
  return InvalidArgument("{}: chat_template is neither a string nor a list with a \"default\" (names: {})",
                         file.string(), fmt::join(names, ", "));
}

}  // namespace

StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::filesystem::path& directory) {
  TokenizerConfig config;
  const auto file = directory / "tokenizer_config.json";
  auto json = ReadJsonObject(file);
  if (json.ok()) {
    TakeSpecialTokens(*json, &config.special_tokens);
  } else if (json.status().code() != absl::StatusCode::kNotFound) {
    return json.status();
  }
  auto map = ReadJsonObject(directory / "special_tokens_map.json");  // older checkpoints name them here only
  if (map.ok()) {
    TakeSpecialTokens(*map, &config.special_tokens);
  } else if (map.status().code() != absl::StatusCode::kNotFound) {
    return map.status();
  }

  auto jinja = ReadTextFile(directory / "chat_template.jinja", kMaxTemplate);
  if (jinja.ok()) {
    config.chat_template = *std::move(jinja);
  } else if (jinja.status().code() != absl::StatusCode::kNotFound) {
    return jinja.status();
  } else if (json.ok()) {
    T6_ASSIGN_OR_RETURN(config.chat_template, TemplateOf(*json, file));
  }
  return config;
}

}  // namespace t6
