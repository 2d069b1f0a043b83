#include "server/completion_handler.h"

#include <atomic>

#include "server/error_map.h"
#include "server/generation_handler.h"
#include "server/request_checks.h"

namespace t6::server {
namespace {

using Base = GenerationHandlerBase<v1::CompletionRequest, v1::CompletionResponse, v1::CompletionChunk>;

// OpenAI's default, where the model has none of its own.
constexpr int kDefaultMaxTokens = 16;

// Log-probabilities of the prompts that are being answered. One takes some 250 bytes until it is sent, and is
// had for a prompt's price: a body of 4 MiB could ask for 20 million.
class ScoreBudget {
 public:
  static constexpr int64_t kOfARequest = int64_t{1} << 20, kOfAll = int64_t{1} << 22;

  // INVALID_ARGUMENT: more than any request may have; RESOURCE_EXHAUSTED: others have them.
  StatusOr<std::shared_ptr<void>> Take(int64_t n) {
    if (n > kOfARequest) {
      return BadField("logprobs",
                      "the prompts would have {} log-probabilities; {} are the most for a request", n,
                      kOfARequest);
    }
    int64_t taken = *taken_;
    do {
      if (taken + n > kOfAll) {
        return ResourceExhausted("the prompts of other requests have {} log-probabilities of {} at once",
                                 taken, kOfAll);
      }
    } while (!taken_->compare_exchange_weak(taken, taken + n));
    return std::shared_ptr<void>(nullptr, [n, taken = taken_](void*) { *taken -= n; });
  }

 private:
  const std::shared_ptr<std::atomic<int64_t>> taken_ = std::make_shared<std::atomic<int64_t>>(0);
};

// "prompt", or "prompt[3]" among several.
std::string PromptName(const v1::CompletionRequest& request, int index) {
  return request.prompts_size() == 1 ? "prompt" : fmt::format("prompt[{}]", index);
}

StatusOr<std::vector<int32_t>> Tokens(const v1::Prompt& prompt, bool add_special_tokens,
                                      const ServedModel& model, const std::string& name) {
  std::vector<int32_t> tokens;
  if (prompt.has_text()) {
    T6_RETURN_IF_ERROR(CheckTokenizer(model, name));
    T6_RETURN_IF_ERROR(CheckTextLength(prompt.text().size(), model, name));
    auto encoded = model.tokenizer->Encode(prompt.text(), add_special_tokens);
    if (!encoded.ok()) return SetErrorParam(Annotate(encoded.status(), name), name);
    tokens = *std::move(encoded);
  } else {
    T6_RETURN_IF_ERROR(CheckTokenIds(prompt.tokens().ids(), model, name));
    tokens.assign(prompt.tokens().ids().begin(), prompt.tokens().ids().end());
  }
  if (tokens.empty()) return BadField(name, "{} is empty; at least one token is needed", name);
  return tokens;
}

class CompletionHandlerImpl final : public Base {
 public:
  explicit CompletionHandlerImpl(HandlerDeps deps) : Base(std::move(deps), "completion", "cmpl-") {}

 protected:
  StatusOr<std::vector<GenerationSpec::Prompt>> Prepare(const ServedModel& model,
                                                        const v1::CompletionRequest& request) const override {
    T6_RETURN_IF_ERROR(CheckModelName(request.model(), model));
    T6_RETURN_IF_ERROR(CheckCacheSalt(request.cache_salt()));
    if (request.has_logprobs()) T6_RETURN_IF_ERROR(CheckLogprobs(request.logprobs(), "logprobs"));
    if (request.prompts_size() == 0) return BadField("prompt", "prompt is missing");
    if (request.prompts_size() > kMaxPrompts) {
      return BadField("prompt", "prompt has {} prompts; {} are the most", request.prompts_size(),
                      kMaxPrompts);
    }
    T6_ASSIGN_OR_RETURN(SamplingParams sampling, ResolveSampling(request.sampling(), model));
    if (request.has_logprobs()) sampling.n_logprobs = request.logprobs();
    if (request.echo() && request.has_logprobs()) sampling.n_prompt_logprobs = request.logprobs();
    if (request.sampling().has_max_tokens() && request.sampling().max_tokens() == 0) {
      if (!request.echo())
        return BadField("max_tokens", "max_tokens is 0; without echo there would be no answer");
      // The engine takes such a request for the sake of its scores alone.
      sampling.n_prompt_logprobs = std::max(sampling.n_prompt_logprobs, 0);
    }

    const ModelInfo& info = model.engine->info();
    int64_t n_scored = 0;
    std::vector<GenerationSpec::Prompt> prompts;
    for (int i = 0; i < request.prompts_size(); ++i) {
      const std::string name = PromptName(request, i);
      const v1::Prompt& given = request.prompts(i);
      if (given.kind_case() == v1::Prompt::KIND_NOT_SET) return BadField(name, "{} is missing", name);
      GenerationSpec::Prompt prompt;
      const bool add_special_tokens = !request.has_add_special_tokens() || request.add_special_tokens();
      T6_ASSIGN_OR_RETURN(prompt.request.prompt, Tokens(given, add_special_tokens, model, name));
      prompt.request.sampling = sampling;
      T6_ASSIGN_OR_RETURN(
          prompt.request.sampling.max_tokens,
          ResolveMaxTokens(request.sampling(), info.default_max_new_tokens.value_or(kDefaultMaxTokens),
                           prompt.request.prompt.size(), info.max_context, name));
      prompt.text.logprobs = request.has_logprobs();
      prompt.text.echo = request.echo();
      if (request.echo() && given.has_text()) prompt.text.prompt_text = given.text();
      if (request.echo() && request.has_logprobs())
        n_scored += static_cast<int64_t>(prompt.request.prompt.size());
      prompts.push_back(std::move(prompt));
    }
    T6_ASSIGN_OR_RETURN(prompts.front().share, scores_.Take(n_scored * (1 + request.logprobs())));
    return prompts;
  }

  void FillText(std::string&& text, bool first, v1::CompletionChoice* choice) const override {
    choice->set_text(std::move(text));
  }

 private:
  mutable ScoreBudget scores_;
};

}  // namespace

std::unique_ptr<CompletionHandler> MakeCompletionHandler(HandlerDeps deps) {
  return std::make_unique<CompletionHandlerImpl>(std::move(deps));
}

}  // namespace t6::server
