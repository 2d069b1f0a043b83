// The subcommands of t6-checkpoint. Each parses its own arguments (`args` without the subcommand's name) and
// prints its result on standard output.
#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "tools/t6_checkpoint/arguments.h"

namespace t6 {

struct Command {
  std::string_view name;
  std::string_view usage;    // "SRC DST"
  std::string_view summary;  // one line
  std::string_view details;  // paragraphs of its --help
  size_t n_positional;
  std::vector<Flag> flags;
  Status (*run)(const Arguments&);
};

Command InfoCommand();
Command ConvertCommand();
Command MakeCommand();

}  // namespace t6
