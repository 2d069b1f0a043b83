#include "server/info_handler.h"

#include "server/chat_prompt.h"
#include "server/error_map.h"
#include "server/request_checks.h"

namespace t6::server {
namespace {

v1::Model Describe(const ServedModel& served) {
  const ModelInfo& info = served.engine->info();
  v1::Model model;
  model.set_id(served.name);
  model.set_created(served.created);
  model.set_owned_by("t6d");
  model.set_max_model_len(info.max_context);
  model.set_variant(info.variant);
  model.set_n_parameters(info.n_parameters);
  model.set_vocab_size(info.vocab_size);
  model.set_device(info.device);
  model.set_dtype(info.dtype);
  model.set_cache_dtype(info.cache_dtype);
  return model;
}

class InfoHandlerImpl final : public InfoHandler {
 public:
  explicit InfoHandlerImpl(const ModelSlot* slot) : slot_(slot) {}

  v1::ListModelsResponse ListModels() const override {
    v1::ListModelsResponse response;
    if (const ServedModel* model = slot_->Get()) *response.add_models() = Describe(*model);
    return response;
  }

  StatusOr<v1::Model> GetModel(const std::string& id) const override {
    T6_ASSIGN_OR_RETURN(const ServedModel* model, Find(id));
    return Describe(*model);
  }

  StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) const override {
    T6_ASSIGN_OR_RETURN(const ServedModel* model, Find(request.model()));
    T6_RETURN_IF_ERROR(CheckTokenizer(*model, request.messages().empty() ? "prompt" : "messages"));
    std::vector<int32_t> tokens;
    if (request.messages().empty()) {
      const bool add_special_tokens = !request.has_add_special_tokens() || request.add_special_tokens();
      T6_ASSIGN_OR_RETURN(tokens, model->tokenizer->Encode(request.prompt(), add_special_tokens));
    } else {
      if (!request.prompt().empty())
        return BadField("prompt", "prompt and messages are both given; one is needed");
      std::optional<bool> generation_prompt;
      if (request.has_add_generation_prompt()) generation_prompt = request.add_generation_prompt();
      T6_ASSIGN_OR_RETURN(tokens, RenderMessages(request.messages(), generation_prompt,
                                                 request.continue_final_message(), *model));
    }
    v1::TokenizeResponse response;
    response.mutable_tokens()->Add(tokens.begin(), tokens.end());
    response.set_count(static_cast<int32_t>(tokens.size()));
    response.set_max_model_len(model->engine->info().max_context);
    return response;
  }

  StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) const override {
    T6_ASSIGN_OR_RETURN(const ServedModel* model, Find(request.model()));
    T6_RETURN_IF_ERROR(CheckTokenizer(*model, "tokens"));
    const int n_tokens = model->tokenizer->n_tokens();
    for (int i = 0; i < request.tokens_size(); ++i) {
      if (request.tokens(i) < 0 || request.tokens(i) >= n_tokens) {
        const std::string path = fmt::format("tokens[{}]", i);
        return BadField(path, "{} is {}; the tokenizer's ids go from 0 to {}", path, request.tokens(i),
                        n_tokens - 1);
      }
    }
    v1::DetokenizeResponse response;
    T6_ASSIGN_OR_RETURN(
        *response.mutable_prompt(),
        model->tokenizer->Decode({request.tokens().data(), static_cast<size_t>(request.tokens_size())},
                                 /*skip_special_tokens=*/false));
    return response;
  }

 private:
  StatusOr<const ServedModel*> Find(const std::string& name) const {
    const ServedModel* model = slot_->Get();
    if (model == nullptr) return Unavailable("the model is still being loaded");
    T6_RETURN_IF_ERROR(CheckModelName(name, *model));
    return model;
  }

  const ModelSlot* const slot_;
};

}  // namespace

std::unique_ptr<InfoHandler> MakeInfoHandler(const ModelSlot* slot) {
  return std::make_unique<InfoHandlerImpl>(slot);
}

}  // namespace t6::server
