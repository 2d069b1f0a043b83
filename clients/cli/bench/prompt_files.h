// Prompts from a file: JSON lines of conversations, or a JSON list of documents with questions. The file is
// hostile until checked. Errors are texts that say where.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "clients/cli/bench/workload.h"

namespace t6::cli {

// `path` as given, for messages only.
std::string ParsePrompts(std::string_view text, const std::string& path, const std::string& instruction,
                         std::vector<BenchPrompt>& prompts);

// At most 256 MiB.
std::string ReadPrompts(const std::string& path, const std::string& instruction,
                        std::vector<BenchPrompt>& prompts);

}  // namespace t6::cli
