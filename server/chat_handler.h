// Messages rendered by the model's chat template, completed. See handlers.h.
#pragma once

#include <memory>

#include "server/generation.h"
#include "server/handlers.h"

namespace t6::server {

std::unique_ptr<ChatHandler> MakeChatHandler(HandlerDeps deps);

}  // namespace t6::server
