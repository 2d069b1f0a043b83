// Messages of the API -> token ids, for chat completions and for Tokenize. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/base/status.h"
#include "server/served_model.h"
#include "t6/v1/chat.pb.h"

namespace t6::server {

// An absent `add_generation_prompt` is the opposite of `continue_final_message`; both true is an error.
StatusOr<std::vector<int32_t>> RenderMessages(
    const google::protobuf::RepeatedPtrField<v1::ChatMessage>& messages,
    std::optional<bool> add_generation_prompt, bool continue_final_message, const ServedModel& model);

}  // namespace t6::server
