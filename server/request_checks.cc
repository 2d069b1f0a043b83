#include "server/request_checks.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "server/error_map.h"

namespace t6::server {
namespace {

// Below it float logits divided by the temperature overflow, and the draw is the most likely token anyway.
constexpr float kLeastTemperature = 1e-4f;

uint64_t RandomSeed() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) ^ device();
}

// The request's value, else the model's, else `otherwise`.
template <typename T, typename D>
T ValueOr(bool has, T value, const std::optional<D>& model_default, T otherwise) {
  if (has) return value;
  return model_default.has_value() ? static_cast<T>(*model_default) : otherwise;
}

}  // namespace

Status CheckModelName(std::string_view name, const ServedModel& model) {
  if (name.empty() || name == model.name) return absl::OkStatus();
  return SetErrorCode(
      SetErrorParam(NotFound("model \"{}\" does not exist here; \"{}\" does", Clipped(name), model.name),
                    "model"),
      "model_not_found");
}

Status CheckTokenizer(const ServedModel& model, std::string_view param) {
  if (model.tokenizer != nullptr) return absl::OkStatus();
  return BadField(param, "{}: model \"{}\" is served without a tokenizer, so only prompts of token ids work",
                  param, model.name);
}

Status CheckTextLength(size_t bytes, const ServedModel& model, std::string_view param) {
  const int max_context = model.engine->info().max_context;
  if (bytes / model.tokenizer->most_bytes_per_token() <= static_cast<size_t>(max_context))
    return absl::OkStatus();
  return SetErrorCode(BadField(param, "{} has {} bytes, which cannot fit the model's context of {} tokens",
                               param, bytes, max_context),
                      "context_length_exceeded");
}

Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, const ServedModel& model,
                     std::string_view param) {
  const int vocab_size = model.engine->info().vocab_size;
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      const std::string path = fmt::format("{}[{}]", param, i);
      return BadField(path, "{} is {}; token ids go from 0 to {}", path, ids[i], vocab_size - 1);
    }
  }
  return absl::OkStatus();
}

Status CheckLogprobs(int32_t n, std::string_view param) {
  if (n >= 0 && n <= kMaxLogprobs) return absl::OkStatus();
  return BadField(param, "{} is {}; it must be from 0 to {}", param, n, kMaxLogprobs);
}

Status CheckCacheSalt(const std::string& salt) {
  if (salt.size() <= kMaxSaltBytes) return absl::OkStatus();
  return BadField("cache_salt", "cache_salt has {} bytes; {} are the most", salt.size(), kMaxSaltBytes);
}

Status CheckStop(const v1::SamplingOptions& options, const ServedModel& model) {
  if (options.stop_size() > kMaxStopStrings) {
    return BadField("stop", "stop has {} strings; {} are the most", options.stop_size(), kMaxStopStrings);
  }
  for (const std::string& stop : options.stop()) {
    if (stop.empty()) return BadField("stop", "stop holds an empty string, \"\"");
    if (stop.size() > kMaxStopBytes) {
      return BadField("stop", "stop holds a string of {} bytes; {} are the most", stop.size(), kMaxStopBytes);
    }
  }
  if (options.stop_size() > 0) T6_RETURN_IF_ERROR(CheckTokenizer(model, "stop"));
  if (options.stop_token_ids_size() > kMaxStopTokenIds) {
    return BadField("stop_token_ids", "stop_token_ids has {} ids; {} are the most",
                    options.stop_token_ids_size(), kMaxStopTokenIds);
  }
  return CheckTokenIds(options.stop_token_ids(), model, "stop_token_ids");
}

StatusOr<SamplingParams> ResolveSampling(const v1::SamplingOptions& options, const ServedModel& model) {
  const ModelInfo& info = model.engine->info();
  SamplingParams params;
  params.temperature =
      ValueOr(options.has_temperature(), options.temperature(), info.default_temperature, 1.0f);
  if (!(params.temperature >= 0 && params.temperature <= 2)) {
    return BadField("temperature", "temperature is {}; it must be from 0 to 2", params.temperature);
  }
  if (params.temperature < kLeastTemperature) params.temperature = 0;
  params.top_p = ValueOr(options.has_top_p(), options.top_p(), info.default_top_p, 1.0f);
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return BadField("top_p", "top_p is {}; it must be above 0 and at most 1", params.top_p);
  }
  params.top_k = ValueOr(options.has_top_k(), options.top_k(), info.default_top_k, 0);
  if (params.top_k < -1)
    return BadField("top_k", "top_k is {}; it must be -1 or 0 (all) or more", params.top_k);
  params.top_k = std::max(params.top_k, 0);
  params.seed = options.has_seed() ? options.seed() : RandomSeed();
  T6_RETURN_IF_ERROR(CheckStop(options, model));
  params.stop_token_ids.assign(options.stop_token_ids().begin(), options.stop_token_ids().end());
  if (!options.ignore_eos()) {
    params.stop_token_ids.insert(params.stop_token_ids.end(), model.eos_ids.begin(), model.eos_ids.end());
  }
  return params;
}

StatusOr<int32_t> ResolveMaxTokens(const v1::SamplingOptions& options, std::optional<int> fallback,
                                   size_t prompt_tokens, int max_context, std::string_view prompt_param) {
  if (options.has_max_tokens() && options.max_tokens() < 0) {
    return BadField("max_tokens", "max_tokens is {}; it cannot be negative", options.max_tokens());
  }
  const int64_t left = int64_t{max_context} - static_cast<int64_t>(prompt_tokens);
  if (!options.has_max_tokens()) {
    if (left >= 1) return static_cast<int32_t>(std::min<int64_t>(fallback.value_or(max_context), left));
    return SetErrorCode(
        BadField(prompt_param,
                 "{} has {} tokens, which leaves nothing of the model's context of {} tokens for an answer",
                 prompt_param, prompt_tokens, max_context),
        "context_length_exceeded");
  }
  if (options.max_tokens() <= left) return options.max_tokens();
  return SetErrorCode(
      BadField(left < 1 ? prompt_param : "max_tokens",
               "{} has {} tokens and max_tokens is {}, together {}; the model's context is {} tokens",
               prompt_param, prompt_tokens, options.max_tokens(),
               static_cast<int64_t>(prompt_tokens) + options.max_tokens(), max_context),
      "context_length_exceeded");
}

}  // namespace t6::server
