// Which model is here, and its tokenizer and chat template by themselves. See handlers.h.
#pragma once

#include <memory>

#include "server/handlers.h"
#include "server/served_model.h"

namespace t6::server {

std::unique_ptr<InfoHandler> MakeInfoHandler(const ModelSlot* slot);

}  // namespace t6::server
