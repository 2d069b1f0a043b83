// t6: a client for t6d.
#include <fmt/format.h>

#include <cstdio>

#include "clients/cli/commands.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/options.h"

int main(int argc, char** argv) {
  using namespace t6::cli;  // NOLINT(google-build-using-namespace)
  ParseResult parsed = Parse({argv + 1, argv + argc});
  const Options& options = parsed.options;
  if (options.help && parsed.error.empty()) {
    fmt::print("{}", Help(options.command));
    return kDone;
  }
  if (!parsed.error.empty()) {
    fmt::print(stderr, "t6: {}\nt6 {}--help says more.\n", parsed.error,
               options.command.empty() ? "" : options.command + " ");
    return kUsage;
  }
  WatchInterrupts();
  if (options.command == "bench") return RunBench(options.arguments);
  if (options.command == "key") return RunKey(options);
  Connection connection(options);
  if (options.command == "ask") return RunAsk(connection, options);
  if (options.command == "chat") return RunChat(connection, options);
  if (options.command == "models") return RunModels(connection, options);
  return RunHealth(connection, options);
}
