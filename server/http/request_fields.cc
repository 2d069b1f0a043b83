#include "server/http/request_fields.h"

#include <fmt/ranges.h>

#include <array>
#include <vector>

#include "server/error_map.h"
#include "server/http/field_parsers.h"

namespace t6::server {
namespace {

using google::protobuf::Message;

constexpr unsigned kGenerate = kChat | kCompletion;
constexpr unsigned kAll = kGenerate | kTokenize | kDetokenize;

constexpr Field Honoured(std::string_view name, unsigned scopes, std::string_view proto,
                         std::string_view doc) {
  return {name, scopes, FieldList::kHonoured, "", proto, nullptr, doc};
}
constexpr Field HonouredBy(std::string_view name, unsigned scopes, FieldParser parse, std::string_view doc) {
  return {name, scopes, FieldList::kHonoured, "", "", parse, doc};
}
constexpr Field Neutral(std::string_view name, unsigned scopes, std::string_view neutral,
                        std::string_view doc) {
  return {name, scopes, FieldList::kNeutral, neutral, "", nullptr, doc};
}
constexpr Field Advisory(std::string_view name, unsigned scopes, FieldParser parse, std::string_view doc) {
  return {name, scopes, FieldList::kAdvisory, "", "", parse, doc};
}
constexpr Field Refused(std::string_view name, unsigned scopes, std::string_view doc) {
  return {name, scopes, FieldList::kRefused, "", "", nullptr, doc};
}

constexpr Field kFields[] = {
    // Honoured
    Honoured("model", kAll, "model", "a name that `GET /v1/models` lists"),
    HonouredBy("messages", kChat | kTokenize, ParseMessages,
               "the conversation, rendered by the model's chat template"),
    Honoured("role", kMessage, "role", "`system`, `developer`, `user`, `assistant` or `tool`"),
    HonouredBy("content", kMessage, ParseContent, "a string, or a list of text parts, which are joined"),
    Honoured("name", kMessage, "name", "who speaks, for templates that show it"),
    HonouredBy("type", kTextPart, ParsePartType, "`text`"),
    HonouredBy("text", kTextPart, ParsePartText, "the part's text"),
    HonouredBy(
        "prompt", kCompletion, ParsePrompts,
        "a string, a list of strings, a list of token ids, or a list of such lists; at most 64 prompts"),
    Honoured("prompt", kTokenize, "prompt", "a string; this or `messages`"),
    Honoured("tokens", kDetokenize, "tokens", "a list of token ids"),
    HonouredBy("max_tokens", kGenerate, ParseMaxTokens,
               "tokens generated at most; default: generation_config.json's `max_new_tokens`, else 16 for "
               "completions "
               "and what is left of the context for chat"),
    HonouredBy("max_completion_tokens", kChat, ParseMaxCompletionTokens,
               "the newer name of `max_tokens`; if both are sent they must be equal"),
    Honoured("temperature", kGenerate, "sampling.temperature",
             "0 is greedy, 2 the most; default: generation_config.json's, else 1"),
    Honoured("top_p", kGenerate, "sampling.top_p",
             "above 0, at most 1; default: generation_config.json's, else 1"),
    Honoured("top_k", kGenerate, "sampling.top_k",
             "0 or -1: no such limit; default: generation_config.json's, else 0"),
    Honoured("seed", kGenerate, "sampling.seed",
             "an integer of 64 bits; same seed, same draws, whatever else the server is doing"),
    Honoured(
        "stop", kGenerate, "sampling.stop",
        "a string or up to 16 strings, of at most 512 bytes; the output ends before the first that appears"),
    Honoured("stop_token_ids", kGenerate, "sampling.stop_token_ids",
             "up to 64 token ids that end the output"),
    Honoured("ignore_eos", kGenerate, "sampling.ignore_eos",
             "true: the model's end-of-sequence tokens do not end the output"),
    Honoured("logprobs", kChat, "logprobs", "true: log-probabilities of the output's tokens"),
    Honoured("top_logprobs", kChat, "top_logprobs",
             "0 to 20 most likely tokens at each place; needs `logprobs`"),
    Honoured("logprobs", kCompletion, "logprobs",
             "0 to 20: log-probabilities of the tokens and of so many most likely ones"),
    Honoured("echo", kCompletion, "echo", "true: the prompt is part of the output, and of `logprobs`"),
    HonouredBy("stream", kGenerate, ParseStream, "true: server-sent events"),
    HonouredBy("stream_options", kGenerate, ParseStreamOptions, "an object; needs `stream`"),
    HonouredBy("include_usage", kStreamOptions, ParseIncludeUsage, "true: a last chunk carries `usage`"),
    Honoured("add_special_tokens", kCompletion | kTokenize, "add_special_tokens",
             "false: a text prompt gets no leading bos and the like; default true"),
    Honoured("return_token_ids", kGenerate, "return_token_ids",
             "true: choices carry `token_ids` and `prompt_token_ids`"),
    Honoured("add_generation_prompt", kChat | kTokenize, "add_generation_prompt",
             "false: the template does not open an answer; default true"),
    Honoured(
        "continue_final_message", kChat | kTokenize, "continue_final_message",
        "true: the last message is continued instead of answered; excludes `add_generation_prompt` true"),
    Honoured("cache_salt", kGenerate, "cache_salt",
             "at most 256 bytes; prefixes are shared only between requests with the same salt"),
    Honoured("priority", kGenerate, "priority",
             "an integer; lower runs first, among one tenant's requests; default 0"),

    // Accepted at a neutral value
    Neutral("n", kGenerate, "[1]", "choices for each prompt"),
    Neutral("best_of", kGenerate, "[1]", "candidates for each prompt"),
    Neutral("min_p", kGenerate, "[0]", "sampling"),
    Neutral("typical_p", kGenerate, "[1]", "sampling"),
    Neutral("min_tokens", kGenerate, "[0]", "tokens before the output may end"),
    Neutral("presence_penalty", kGenerate, "[0]", "sampling"),
    Neutral("frequency_penalty", kGenerate, "[0]", "sampling"),
    Neutral("repetition_penalty", kGenerate, "[1]", "sampling"),
    Neutral("length_penalty", kGenerate, "[1]", "beam search"),
    Neutral("use_beam_search", kGenerate, "[false]", "beam search"),
    Neutral("early_stopping", kGenerate, "[false]", "beam search"),
    Neutral("logit_bias", kGenerate, "[{}]", "sampling"),
    Neutral("bad_words", kGenerate, "[[]]", "sampling"),
    Neutral("response_format", kGenerate, R"([{"type": "text"}])", "structured output"),
    Neutral("suffix", kCompletion, R"([""])", "text after the insertion"),
    Neutral("echo", kChat, "[false]", "only completions echo"),
    Neutral("tools", kChat, "[[]]", "tool calls"),
    Neutral("tool_choice", kChat, R"(["none", "auto"])", "tool calls"),
    Neutral("parallel_tool_calls", kChat, "[true, false]", "tool calls; says nothing without tools"),
    Neutral("functions", kChat, "[[]]", "the older name of `tools`"),
    Neutral("function_call", kChat, R"(["none", "auto"])", "the older name of `tool_choice`"),
    Neutral("modalities", kChat, R"([["text"]])", "kinds of output"),
    Neutral("reasoning_effort", kChat, R"(["none"])", "reasoning models"),
    Neutral("include_reasoning", kChat, "[true, false]", "reasoning models; says nothing for others"),
    Neutral("verbosity", kChat, R"(["medium"])", "reasoning models"),
    Neutral("documents", kChat, "[[]]", "documents for the template"),
    Neutral("chat_template_kwargs", kChat | kTokenize, "[{}]", "variables for the template"),
    Neutral("add_special_tokens", kChat, "[false]", "the template writes them"),
    Neutral("store", kGenerate, "[false]", "nothing is stored"),
    Neutral("service_tier", kGenerate, R"(["auto", "default"])", "there is one"),
    Neutral("skip_special_tokens", kGenerate, "[true]", "special tokens never appear in text"),
    Neutral("spaces_between_special_tokens", kGenerate, "[true, false]",
            "special tokens never appear in text"),
    Neutral("include_stop_str_in_output", kGenerate, "[false]", "stop strings are cut"),
    Neutral("return_tokens_as_token_ids", kGenerate, "[false]", "`return_token_ids` gives the ids"),
    Neutral("detokenize", kGenerate, "[true]", "outputs always come as text"),
    Neutral("return_token_strs", kTokenize, "[false]", "`/detokenize` gives the text"),
    Neutral("continuous_usage_stats", kStreamOptions, "[false]", "usage comes in the last chunk only"),
    Neutral("include_obfuscation", kStreamOptions, "[false]", "chunks are not padded"),
    Neutral("type", kMessage, R"(["text", "message"])", "some clients mark messages so"),
    Neutral("tool_calls", kMessage, "[[]]", "tool calls"),
    Neutral("annotations", kMessage, "[[]]", "as answers of other servers carry it"),

    // Advisory
    {"user", kGenerate, FieldList::kAdvisory, "", "user", nullptr, "a string; logged at most"},
    Advisory("metadata", kGenerate, ParseIgnoredObject, "an object; not used"),
    Advisory("safety_identifier", kGenerate, ParseIgnoredString, "a string; not used"),
    Advisory("prompt_cache_key", kGenerate, ParseIgnoredString,
             "a string; not used: prefixes are found without a key"),
    Advisory("prompt_cache_options", kChat, ParseIgnoredObject, "an object; not used"),
    Advisory("prompt_cache_retention", kGenerate, ParseIgnoredString, "a string; not used"),

    // Refused
    Refused("allowed_token_ids", kGenerate, "sampling"),
    Refused("audio", kChat | kMessage, "audio"),
    Refused("chat_template", kChat | kTokenize, "only the server's own template"),
    Refused("context", kGenerate, "named contexts"),
    Refused("function_call", kMessage, "tool calls"),
    Refused("guided_choice", kGenerate, "structured output"),
    Refused("guided_decoding_backend", kGenerate, "structured output"),
    Refused("guided_grammar", kGenerate, "structured output"),
    Refused("guided_json", kGenerate, "structured output"),
    Refused("guided_regex", kGenerate, "structured output"),
    Refused("guided_whitespace_pattern", kGenerate, "structured output"),
    Refused("kv_transfer_params", kGenerate, "another server's cache"),
    Refused("logits_processors", kGenerate, "sampling"),
    Refused("mm_processor_kwargs", kChat, "images"),
    Refused("moderation", kChat, "moderation of prompts and answers"),
    Refused("prediction", kChat, "predicted output"),
    Refused("prompt_embeds", kCompletion, "prompts as embeddings"),
    Refused("prompt_logprobs", kGenerate, "completions give them with `echo` and `logprobs`"),
    Refused("reasoning", kMessage, "reasoning models"),
    Refused("reasoning_content", kMessage, "reasoning models"),
    Refused("refusal", kMessage, "as answers of other servers carry it"),
    Refused("request_id", kGenerate, "the header `x-request-id` names a request"),
    Refused("structured_outputs", kGenerate, "structured output"),
    Refused("tool_call_id", kMessage, "tool calls"),
    Refused("truncate_prompt_tokens", kGenerate, "prompts are never cut"),
    Refused("web_search_options", kChat, "tools"),
    Refused("image_url", kTextPart, "images"),
    Refused("input_audio", kTextPart, "audio"),
    Refused("file", kTextPart, "files"),
};

const Field* Find(Scope scope, std::string_view name) {
  for (const Field& field : kFields) {
    if ((field.scopes & scope) != 0 && field.name == name) return &field;
  }
  return nullptr;
}

Status CheckNeutral(const Field& field, const Json& value, const std::string& path) {
  const Json neutral = Json::parse(field.neutral);
  std::vector<std::string> shown;
  for (const Json& pass : neutral) {
    if (value == pass) return absl::OkStatus();
    shown.push_back(pass.dump());
  }
  return SetErrorCode(BadField(path, "\"{}\" = {} is not supported yet; leave it out or send {}", path,
                               Shortened(value), fmt::join(shown, " or ")),
                      "unsupported_parameter");
}

Status ParseField(const Field& field, const Json& value, const std::string& path, Message& target,
                  Draft& draft) {
  switch (field.list) {
    case FieldList::kNeutral:
      return CheckNeutral(field, value, path);
    case FieldList::kRefused:
      return SetErrorCode(
          BadField(path, "\"{}\" = {} is not supported; leave it out", path, Shortened(value)),
          "unsupported_parameter");
    case FieldList::kHonoured:
    case FieldList::kAdvisory:
      break;
  }
  if (field.parse != nullptr) return field.parse(value, path, target, draft);
  return ParseIntoProto(value, path, field.proto, target);
}

std::string ShownName(const Field& field) {
  if (field.scopes & kStreamOptions) return fmt::format("stream_options.{}", field.name);
  if (field.scopes & kTextPart) return fmt::format("messages[].content[].{}", field.name);
  if (field.scopes == kMessage) return fmt::format("messages[].{}", field.name);
  if (field.scopes & kMessage) return fmt::format("{0}`, `messages[].{0}", field.name);
  return std::string(field.name);
}

std::string ShownScopes(unsigned scopes) {
  if (scopes & kStreamOptions) scopes = kGenerate;
  if (scopes & (kMessage | kTextPart)) scopes |= kChat | kTokenize;
  std::vector<std::string_view> names;
  for (const auto& [bit, name] : {std::pair{kChat, "chat"}, std::pair{kCompletion, "completions"},
                                  std::pair{kTokenize, "tokenize"}, std::pair{kDetokenize, "detokenize"}}) {
    if (scopes & bit) names.push_back(name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

std::span<const Field> RequestFields() { return kFields; }

Status ParseFields(Scope scope, const Json& object, const std::string& prefix, Message& target,
                   Draft& draft) {
  for (const auto& [name, value] : object.items()) {
    const Field* field = Find(scope, name);
    if (field == nullptr) {
      // The name is the client's and may be anything.
      const std::string shown = Shortened(Json(name));
      return SetErrorCode(BadField(prefix + shown.substr(1, shown.size() - 2), "unknown field {}{}", shown,
                                   prefix.empty() ? "" : " in " + prefix.substr(0, prefix.size() - 1)),
                          "unknown_parameter");
    }
    if (value.is_null()) continue;
    T6_RETURN_IF_ERROR(ParseField(*field, value, prefix + name, target, draft));
  }
  return absl::OkStatus();
}

std::string FieldListsMarkdown() {
  static constexpr std::array<std::pair<FieldList, std::string_view>, 4> kLists = {{
      {FieldList::kHonoured, "Honoured"},
      {FieldList::kNeutral, "Accepted at a neutral value"},
      {FieldList::kAdvisory, "Advisory"},
      {FieldList::kRefused, "Refused"},
  }};
  std::string text;
  for (const auto& [list, title] : kLists) {
    const bool with_values = list == FieldList::kNeutral;
    text += fmt::format(
        "### {}\n\n| field | in | {}{} |\n|---|---|{}---|\n", title, with_values ? "passes | " : "",
        list == FieldList::kRefused || with_values ? "about" : "meaning", with_values ? "---|" : "");
    for (const Field& field : kFields) {
      if (field.list != list) continue;
      std::string values;
      if (with_values) {
        std::vector<std::string> shown;
        for (const Json& value : Json::parse(field.neutral))
          shown.push_back(fmt::format("`{}`", value.dump()));
        values = fmt::format("{} | ", fmt::join(shown, ", "));
      }
      text += fmt::format("| `{}` | {} | {}{} |\n", ShownName(field), ShownScopes(field.scopes), values,
                          field.doc);
    }
    text += "\n";
  }
  text.pop_back();
  return text;
}

}  // namespace t6::server
