// What chat and completions check alike: the model's name, sampling options and their defaults, lengths.
// Errors carry the offending value and name the field as the HTTP API does. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/request.h"
#include "server/served_model.h"
#include "t6/v1/completions.pb.h"

namespace t6::server {

inline constexpr int kMaxPrompts = 64;
inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopBytes = 512;
inline constexpr int kMaxStopTokenIds = 64;
inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxSaltBytes = 256;

// An empty name means the model that is there.
Status CheckModelName(std::string_view name, const ServedModel& model);
// nullptr-safe: INVALID_ARGUMENT that explains what is missing.
Status CheckTokenizer(const ServedModel& model, std::string_view param);
// Cheaper than tokenising a text that cannot fit; `param` names the field.
Status CheckTextLength(size_t bytes, const ServedModel& model, std::string_view param);
Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, const ServedModel& model,
                     std::string_view param);
Status CheckLogprobs(int32_t n, std::string_view param);
Status CheckCacheSalt(const std::string& salt);
Status CheckStop(const v1::SamplingOptions& options, const ServedModel& model);

// All but max_tokens and the log-probabilities.
StatusOr<SamplingParams> ResolveSampling(const v1::SamplingOptions& options, const ServedModel& model);

// Tokens to generate. Left out, it is `fallback` (none: the rest of the context) cut to what the context
// leaves.
StatusOr<int32_t> ResolveMaxTokens(const v1::SamplingOptions& options, std::optional<int> fallback,
                                   size_t prompt_tokens, int max_context, std::string_view prompt_param);

}  // namespace t6::server
