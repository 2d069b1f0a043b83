// Prompts of text or of token ids, completed. See handlers.h.
#pragma once

#include <memory>

#include "server/generation.h"
#include "server/handlers.h"

namespace t6::server {

std::unique_ptr<CompletionHandler> MakeCompletionHandler(HandlerDeps deps);

}  // namespace t6::server
