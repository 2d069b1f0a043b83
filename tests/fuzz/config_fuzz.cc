// Any bytes as --config's file and as flags' values: a configuration or INVALID_ARGUMENT with a short
// message.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "server/config.h"
#include "tests/fuzz/fuzz_target.h"

std::string FuzzSeed() {
  return R"({"model": "m", "http": "127.0.0.1:8000", "grpc": "[::1]:0", "cache-bytes": "1.5GiB", "threads": 4,
    "eos-id": [1, 2], "model-override": {"rank": 3, "x": "y"}, "drain-grace": "1m30s", "drain-deadline": 2.5,
    "log-level": "warn", "log-format": "json", "max-step-ms": 1e1, "served-model-name": "\u00e9"})";
}

namespace {

void CheckOutcome(const std::vector<std::string>& args) {
  const auto config = t6::server::ParseConfig(args);
  if (config.ok()) {
    T6_CHECK(!config->engine.model_directory.empty() && !config->served_model_name.empty());
    return;
  }
  T6_CHECK(config.status().code() == absl::StatusCode::kInvalidArgument);
  T6_CHECK(!config.status().message().empty() && config.status().message().size() < 1000, "{} bytes",
           config.status().message().size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto path =
      std::filesystem::temp_directory_path() / ("t6d-config-fuzz-" + std::to_string(getpid()) + ".json");
  std::ofstream(path, std::ios::binary) << text;
  CheckOutcome({"--config", path.string()});
  std::filesystem::remove(path);
  for (const char* flag : {"--http", "--cache-bytes", "--drain-grace", "--threads", "--max-step-ms",
                           "--eos-id", "--model-override", "--served-model-name", "--log-level"}) {
    CheckOutcome({"--model", "m", flag, text.substr(0, 40)});
  }
  return 0;
}
