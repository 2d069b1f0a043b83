// A route that runs on another executor than its connection's: for work that would hold up everybody else's
// streams. Thread-safe.
#pragma once

#include "server/executor.h"
#include "server/http/router.h"

namespace t6::server {

// The reply goes out on the request's executor as ever, at once where the executor's bound is reached. A
// client that leaves meanwhile drops the work: before it has begun, or as soon as it has returned.
RouteFunction OffloadedTo(Executor* executor, RouteFunction function);

}  // namespace t6::server
