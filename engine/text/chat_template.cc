#include "engine/text/chat_template.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/base/read_file.h"
#include "engine/text/ffi/ffi_call.h"
#include "engine/text/hf_tokenizer.h"
#include "engine/text/special_marks.h"
#include "engine/text/tokenizer_config.h"
#include "engine/text/utf8.h"

namespace t6 {
namespace {

using nlohmann::json;
using text_ffi::Call;
using text_ffi::Slice;

constexpr size_t kMaxTemplate = 256 << 10;
constexpr size_t kMaxRequest = 16 << 20;
constexpr size_t kMaxPrompt = 64 << 20;
constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};

// Stands after the final message where it is to be continued. As in transformers, the space tells whether the
// template trims. The character is a mark (special_marks.h), so no special token can reach over it.
constexpr std::string_view kEndTag = "\xF1\xBF\xBF\xBD ";  // U+7FFFD

Status CheckString(std::string_view text, size_t message, std::string_view field, size_t* total) {
  *total += text.size();
  if (*total > kMaxRequest) return InvalidArgument("messages: more than {} bytes of text", kMaxRequest);
  const size_t invalid = FirstInvalidUtf8(text);
  if (invalid == std::string_view::npos) return absl::OkStatus();
  return InvalidArgument("messages[{}].{}: not valid UTF-8 at byte {}", message, field, invalid);
}

Status CheckRequest(const std::vector<ChatMessage>& messages, const ChatOptions& options) {
  if (messages.empty()) return InvalidArgument("messages: empty");
  if (options.add_generation_prompt && options.continue_final_message) {
    return InvalidArgument("add_generation_prompt and continue_final_message exclude each other");
  }
  size_t total = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
      size_t role_total = 0;
      T6_RETURN_IF_ERROR(CheckString(message.role, i, "role", &role_total));
      return InvalidArgument("messages[{}].role: \"{}\" is not one of {}", i, message.role.substr(0, 64),
                             fmt::join(kRoles, ", "));
    }
    T6_RETURN_IF_ERROR(CheckString(message.content, i, "content", &total));
    T6_RETURN_IF_ERROR(CheckString(message.name, i, "name", &total));
  }
  return absl::OkStatus();
}

std::string_view Strip(std::string_view text, bool both_ends) {
  size_t begin = std::string_view::npos;
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = CodePointAt(text, at).value_or(CodePoint{0xFFFD, 1});
    if (!IsPythonSpace(c.value)) {
      begin = std::min(begin, at);
      end = at + c.size;
    }
    at += c.size;
  }
  return text.substr(both_ends ? std::min(begin, end) : 0, both_ends && end > 0 ? end - begin : end);
}

// The rendering up to the end of the final message.
StatusOr<std::string> CutAtTag(std::string rendered) {
  const size_t at = rendered.rfind(kEndTag.substr(0, kEndTag.size() - 1));
  if (at == std::string::npos) {
    return InvalidArgument("continue_final_message: the chat template leaves the final message out");
  }
  const bool trimmed = rendered.compare(at, kEndTag.size(), kEndTag) != 0;
  rendered.resize(at);
  if (trimmed) rendered.resize(Strip(rendered, /*both_ends=*/false).size());
  return rendered;
}

class JinjaTemplate final : public ChatTemplate {
 public:
  static StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source,
                                                       const TokenizerConfig& config) {
    auto result = std::make_unique<JinjaTemplate>();
    t6_template* handle = nullptr;
    const std::string globals = json(config.special_tokens).dump();
    T6_RETURN_IF_ERROR(Call([&](t6_text_buffer* out) {
                         return t6_template_new(Slice(source), Slice(globals), &handle, out);
                       }).status());
    result->handle_.reset(handle);
    return result;
  }

  StatusOr<RenderedChat> Render(const std::vector<ChatMessage>& messages, const ChatOptions& options,
                                const Tokenizer& tokenizer) const override {
    T6_RETURN_IF_ERROR(CheckRequest(messages, options));
    const auto* hf = dynamic_cast<const HfTokenizer*>(&tokenizer);
    if (hf == nullptr) return Internal("chat templates need a tokenizer of Tokenizer::Load");

    T6_ASSIGN_OR_RETURN(TracedText prompt, RenderTraced(messages, options, hf->special_strings()));
    if (prompt.text.size() > kMaxPrompt) {
      return InvalidArgument("the prompt has {} bytes, more than {}", prompt.text.size(), kMaxPrompt);
    }
    const std::vector<SpecialCut> cuts = FindCuts(prompt, hf->special_strings());
    RenderedChat chat;
    T6_ASSIGN_OR_RETURN(chat.tokens, hf->EncodeWithCuts(prompt.text, cuts));
    chat.text = std::move(prompt.text);
    return chat;
  }

 private:
  struct Free {
    void operator()(t6_template* handle) const { t6_template_free(handle); }
  };

  // special_marks.h says why there are several renderings.
  StatusOr<TracedText> RenderTraced(const std::vector<ChatMessage>& messages, const ChatOptions& options,
                                    const SpecialStrings& special) const {
    T6_ASSIGN_OR_RETURN(const std::string plain,
                        RenderText(messages, options, [](std::string_view s) { return std::string(s); }));
    if (options.continue_final_message &&
        plain.find(Strip(messages.back().content, /*both_ends=*/true)) == std::string::npos) {
      return InvalidArgument("continue_final_message: the chat template changes the final message");
    }
    StatusOr<std::string> marked;
    for (const MarkScheme scheme : {MarkScheme::kEveryCharacter, MarkScheme::kSpecialStrings}) {
      marked = RenderText(messages, options, [&](std::string_view s) { return Mark(s, scheme, special); });
      if (!marked.ok()) continue;  // the template looked at the text and refused what it saw
      if (auto traced = Trace(plain, *marked)) return *std::move(traced);
    }
    if (!marked.ok()) return marked.status();
    for (size_t i = 0; i < messages.size(); ++i) {
      for (size_t at = 0; at < messages[i].content.size();) {
        const CodePoint c = CodePointAt(messages[i].content, at).value_or(CodePoint{0, 1});
        if (IsMark(c.value)) {
          return InvalidArgument("messages[{}].content: unassigned code point U+{:X} at byte {}", i,
                                 static_cast<uint32_t>(c.value), at);
        }
        at += c.size;
      }
    }
    return Unmark(*marked);
  }

  template <typename MarkString>
  StatusOr<std::string> RenderText(const std::vector<ChatMessage>& messages, const ChatOptions& options,
                                   MarkString&& mark) const {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const ChatMessage& message : messages) {
      nlohmann::ordered_json entry = {{"role", message.role}, {"content", mark(message.content)}};
      if (!message.name.empty()) entry["name"] = mark(message.name);
      list.push_back(std::move(entry));
    }
    if (options.continue_final_message) {
      list.back()["content"].get_ref<std::string&>().append(kEndTag.data(), kEndTag.size());
    }
    nlohmann::ordered_json variables;
    variables["messages"] = std::move(list);
    variables["add_generation_prompt"] = options.add_generation_prompt;
    variables["tools"] = nullptr;
    variables["documents"] = nullptr;
    const std::string text = variables.dump();
    auto rendered =
        Call([&](t6_text_buffer* out) { return t6_template_render(handle_.get(), Slice(text), out); });
    if (!rendered.ok()) return Annotate(rendered.status(), "chat template");
    if (options.continue_final_message) return CutAtTag(*std::move(rendered));
    return rendered;
  }

  std::unique_ptr<t6_template, Free> handle_;
};

}  // namespace

StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::filesystem::path& directory) {
  T6_ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(directory));
  if (!config.chat_template) {
    return NotFound("{}: the model has no chat template; name one with --chat-template FILE",
                    directory.string());
  }
  auto result = JinjaTemplate::Parse(*config.chat_template, config);
  if (!result.ok()) return Annotate(result.status(), fmt::format("{}: chat template", directory.string()));
  return result;
}

StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::LoadFile(
    const std::filesystem::path& file, const std::filesystem::path& tokenizer_directory) {
  T6_ASSIGN_OR_RETURN(const std::string source, ReadTextFile(file, kMaxTemplate));
  T6_ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(tokenizer_directory));
  auto result = JinjaTemplate::Parse(source, config);
  if (!result.ok()) return Annotate(result.status(), fmt::format("{}: chat template", file.string()));
  return result;
}

}  // namespace t6
