#include "server/chat_prompt.h"

#include "server/error_map.h"
#include "server/request_checks.h"

namespace t6::server {
namespace {

// What is wrong with a message is told as `messages[2].role: "x" is not ...`: the field's path first.
std::string FieldOf(std::string_view error) {
  const std::string_view path =
      error.substr(0, error.find_first_not_of("abcdefghijklmnopqrstuvwxyz_.[]0123456789"));
  const bool told = error.substr(path.size()).starts_with(": ") &&
                    (path.starts_with("messages[") || path == "continue_final_message");
  return told ? std::string(path) : "messages";
}

}  // namespace

StatusOr<std::vector<int32_t>> RenderMessages(
    const google::protobuf::RepeatedPtrField<v1::ChatMessage>& messages,
    std::optional<bool> add_generation_prompt, bool continue_final_message, const ServedModel& model) {
  T6_RETURN_IF_ERROR(CheckTokenizer(model, "messages"));
  if (model.chat_template == nullptr) {
    return BadField("messages",
                    "model \"{}\" has no chat template, so messages cannot become a prompt; "
                    "start the server with --chat-template, or use completions",
                    model.name);
  }
  if (messages.empty()) return BadField("messages", "messages is empty; at least one is needed");
  if (continue_final_message && add_generation_prompt.value_or(false)) {
    return BadField("continue_final_message",
                    "continue_final_message and add_generation_prompt are both true");
  }
  size_t bytes = 0;
  std::vector<ChatMessage> plain;
  for (const v1::ChatMessage& message : messages) {
    bytes += message.role().size() + message.content().size() + message.name().size();
    plain.push_back({message.role(), message.content(), message.name()});
  }
  T6_RETURN_IF_ERROR(CheckTextLength(bytes, model, "messages"));
  ChatOptions options;
  options.continue_final_message = continue_final_message;
  options.add_generation_prompt = add_generation_prompt.value_or(!continue_final_message);
  auto rendered = model.chat_template->Render(plain, options, *model.tokenizer);
  if (!rendered.ok()) {
    return GetErrorParam(rendered.status()).empty()
               ? SetErrorParam(rendered.status(), FieldOf(MessageOf(rendered.status())))
               : rendered.status();
  }
  return std::move(rendered->tokens);
}

}  // namespace t6::server
