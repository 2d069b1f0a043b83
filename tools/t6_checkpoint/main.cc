// t6-checkpoint: what is in a checkpoint, to safetensors, random weights of a named size.
// Exit status: 0 done, 1 failed, 2 used wrongly.
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>

#include "tools/t6_checkpoint/commands.h"

namespace {

using t6::Command;

constexpr int kFailed = 1, kMisused = 2;

void PrintHelp(const std::vector<Command>& commands, std::FILE* to) {
  fmt::print(to, "Usage: t6-checkpoint COMMAND ...\n\nTools around checkpoints of T6 language models.\n\n");
  for (const Command& c : commands) fmt::print(to, "  {:<8} {:<8}  {}\n", c.name, c.usage, c.summary);
  fmt::print(to,
             "\nt6-checkpoint COMMAND --help tells more. Exit status: 0 done, 1 failed, 2 used wrongly.\n");
}

void PrintHelp(const Command& c) {
  fmt::print("Usage: t6-checkpoint {} [flags] {}\n\n{}\n{}", c.name, c.usage, c.summary, c.details);
  fmt::print("\nFlags:\n{}", t6::DescribeFlags(c.flags));
}

int Run(const Command& command, const std::vector<std::string>& args) {
  const auto arguments = t6::Arguments::Parse(args, command.flags, command.n_positional);
  if (!arguments.ok()) {
    fmt::print(stderr, "t6-checkpoint {}: {} (--help tells more)\n", command.name,
               t6::MessageOf(arguments.status()));
    return kMisused;
  }
  const t6::Status status = command.run(*arguments);
  if (status.ok()) return 0;
  std::fflush(stdout);
  fmt::print(stderr, "t6-checkpoint {}: {}\n", command.name, t6::MessageOf(status));
  return absl::IsOutOfRange(status) ? kMisused : kFailed;
}

int Main(std::vector<std::string> args) {
  const std::vector<Command> commands = {t6::InfoCommand(), t6::ConvertCommand(), t6::MakeCommand()};
  if (args.empty()) {
    PrintHelp(commands, stderr);
    return kMisused;
  }
  if (args[0] == "--help" || args[0] == "help") {
    PrintHelp(commands, stdout);
    return 0;
  }
  for (const Command& c : commands) {
    if (c.name != args[0]) continue;
    args.erase(args.begin());
    for (const std::string& arg : args) {
      if (arg != "--help") continue;
      PrintHelp(c);
      return 0;
    }
    return Run(c, args);
  }
  fmt::print(stderr, "t6-checkpoint: unknown command \"{}\" (--help lists them)\n", args[0]);
  return kMisused;
}

}  // namespace

int main(int argc, char** argv) {
  std::string error;
  try {
    const int code = Main({argv + 1, argv + argc});
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
    error = fmt::format("cannot write to standard output: {}", std::strerror(errno));
  } catch (const std::exception& thrown) {  // fmt's, of a disk that is full, or out of memory
    error = thrown.what();
  }
  fmt::print(stderr, "t6-checkpoint: {}\n", error);
  return kFailed;
}
