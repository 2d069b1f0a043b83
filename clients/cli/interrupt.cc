#include "clients/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <mutex>
#include <thread>
#include <utility>

namespace t6::cli {
namespace {

struct State {
  std::mutex mutex;
  std::function<void()> cancel;  // of what runs
  bool interrupted = false;
};

State& Shared() {
  static auto* state = new State;  // never destroyed: the watching thread outlives main
  return *state;
}

}  // namespace

void WatchInterrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals] {
    for (;;) {
      int signal_number = 0;
      if (sigwait(&signals, &signal_number) != 0) continue;
      State& state = Shared();
      std::lock_guard lock(state.mutex);
      if (!state.cancel || state.interrupted) {
        (void)!write(STDERR_FILENO, "\n", 1);
        _exit(130);
      }
      state.interrupted = true;
      state.cancel();
    }
  }).detach();
}

Interruptible::Interruptible(std::function<void()> cancel) {
  std::lock_guard lock(Shared().mutex);
  Shared().cancel = std::move(cancel);
}

Interruptible::~Interruptible() {
  std::lock_guard lock(Shared().mutex);
  Shared().cancel = nullptr;
}

bool TakeInterrupted() {
  std::lock_guard lock(Shared().mutex);
  bool was = Shared().interrupted;
  Shared().interrupted = false;
  return was;
}

}  // namespace t6::cli
