// Ctrl-C: while something runs it cancels that; otherwise it ends the program with 130. A thread of its own
// takes the signal, because cancelling a call is not allowed in a signal handler.
#pragma once

#include <grpcpp/client_context.h>

#include <functional>

namespace t6::cli {

// Call first in main, before any other thread exists.
void WatchInterrupts();

// While it lives, ctrl-C cancels `context`, or calls `cancel` once on the watching thread. One at a time.
class Interruptible {
 public:
  explicit Interruptible(std::function<void()> cancel);
  explicit Interruptible(grpc::ClientContext* context) : Interruptible([context] { context->TryCancel(); }) {}
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
};

// Whether ctrl-C cancelled a call since the last time this was asked.
bool TakeInterrupted();

}  // namespace t6::cli
