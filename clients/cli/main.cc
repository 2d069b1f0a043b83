// t6: a client for t6d.
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>

#include "clients/cli/commands.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/options.h"

namespace t6::cli {
namespace {

ExitCode Run(const std::vector<std::string>& arguments) {
  ParseResult parsed = Parse(arguments);
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

}  // namespace
}  // namespace t6::cli

int main(int argc, char** argv) {
  t6::cli::ExitCode code = t6::cli::kFailed;
  std::string error;
  try {
    code = t6::cli::Run({argv + 1, argv + argc});
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      error = fmt::format("cannot write to standard output: {}", std::strerror(errno));
    }
  } catch (const std::exception& thrown) {  // fmt's, of a disk that is full, or out of memory
    error = thrown.what();
  }
  if (error.empty()) return code;
  fmt::print(stderr, "t6: {}\n", error);
  return t6::cli::kFailed;
}
