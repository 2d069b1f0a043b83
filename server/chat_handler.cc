#include "server/chat_handler.h"

#include "server/chat_prompt.h"
#include "server/error_map.h"
#include "server/generation_handler.h"
#include "server/request_checks.h"

namespace t6::server {
namespace {

using Base =
    GenerationHandlerBase<v1::ChatCompletionRequest, v1::ChatCompletionResponse, v1::ChatCompletionChunk>;

class ChatHandlerImpl final : public Base {
 public:
  explicit ChatHandlerImpl(HandlerDeps deps) : Base(std::move(deps), "chat", "chatcmpl-") {}

 protected:
  StatusOr<std::vector<GenerationSpec::Prompt>> Prepare(
      const ServedModel& model, const v1::ChatCompletionRequest& request) const override {
    T6_RETURN_IF_ERROR(CheckModelName(request.model(), model));
    T6_RETURN_IF_ERROR(CheckCacheSalt(request.cache_salt()));
    T6_RETURN_IF_ERROR(CheckLogprobs(request.top_logprobs(), "top_logprobs"));
    if (request.top_logprobs() > 0 && !request.logprobs()) {
      return BadField("top_logprobs", "top_logprobs is {}, which needs logprobs to be true",
                      request.top_logprobs());
    }
    GenerationSpec::Prompt prompt;
    T6_ASSIGN_OR_RETURN(prompt.request.sampling, ResolveSampling(request.sampling(), model));
    std::optional<bool> generation_prompt;
    if (request.has_add_generation_prompt()) generation_prompt = request.add_generation_prompt();
    T6_ASSIGN_OR_RETURN(prompt.request.prompt, RenderMessages(request.messages(), generation_prompt,
                                                              request.continue_final_message(), model));
    const ModelInfo& info = model.engine->info();
    if (request.sampling().has_max_tokens() && request.sampling().max_tokens() == 0) {
      return BadField("max_tokens", "max_tokens is 0; an answer needs at least 1");
    }
    T6_ASSIGN_OR_RETURN(prompt.request.sampling.max_tokens,
                        ResolveMaxTokens(request.sampling(), info.default_max_new_tokens,
                                         prompt.request.prompt.size(), info.max_context, "messages"));
    prompt.text.logprobs = request.logprobs();
    if (request.logprobs()) prompt.request.sampling.n_logprobs = request.top_logprobs();
    std::vector<GenerationSpec::Prompt> prompts;
    prompts.push_back(std::move(prompt));
    return prompts;
  }

  void FillText(std::string&& text, bool first, v1::ChatChoice* choice) const override {
    if (first) choice->mutable_message()->set_role("assistant");
    choice->mutable_message()->set_content(std::move(text));
  }
};

}  // namespace

std::unique_ptr<ChatHandler> MakeChatHandler(HandlerDeps deps) {
  return std::make_unique<ChatHandlerImpl>(std::move(deps));
}

}  // namespace t6::server
