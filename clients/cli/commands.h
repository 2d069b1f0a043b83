// The commands. Each prints its result on standard output, everything else on standard error.
#pragma once

#include <string>
#include <vector>

#include "clients/cli/connection.h"
#include "clients/cli/options.h"

namespace t6::cli {

ExitCode RunAsk(Connection& connection, const Options& options);
ExitCode RunChat(Connection& connection, const Options& options);
ExitCode RunModels(Connection& connection, const Options& options);
// `arguments`: all after "bench".
ExitCode RunBench(const std::vector<std::string>& arguments);
ExitCode RunHealth(Connection& connection, const Options& options);
ExitCode RunKey(const Options& options);  // needs no server

}  // namespace t6::cli
