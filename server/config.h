// The daemon's configuration: defaults, then --config's JSON, then flags, checked once. One table (config.cc)
// drives the flags, the file's keys and --help. Plain data once made.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "engine/config.h"

namespace t6::server {

struct ListenAddress {
  std::string host;              // a numeric address, or "localhost"
  uint16_t port = 0;             // 0: any free one
  std::string ToString() const;  // IPv6 in brackets
};

// Bounds of the HTTP transport. Only address, origins and hosts have flags.
struct HttpConfig {
  ListenAddress address{"127.0.0.1", 8000};
  size_t max_body_bytes = size_t{16} << 20;    // 413
  size_t max_header_bytes = size_t{32} << 10;  // 431
  int max_json_depth = 64;                     // 400
  int max_connections = 4096;
  absl::Duration idle_timeout = absl::Seconds(75);   // between two requests of a connection
  absl::Duration read_timeout = absl::Seconds(30);   // first to last byte of a request
  absl::Duration write_timeout = absl::Seconds(60);  // a write that the client does not take
  absl::Duration linger_timeout = absl::Seconds(2);  // between two pieces that an answered client still sends
  std::vector<std::string> cors_origins;             // whose web pages may call; "*": all; empty: none
  std::vector<std::string> allowed_hosts;  // names that it answers to; "*": all; empty: host_policy.h
};

struct GrpcConfig {
  ListenAddress address{"127.0.0.1", 50051};
  int max_message_bytes = 16 << 20;
  // Of one connection, which may be a balancer's: what can run and wait. ParseConfig makes it so.
  int max_concurrent_streams = 1088;
  int max_calls = 4096;         // at once, over all connections
  int max_large_messages = 64;  // messages of the largest size, received or being answered, at once
};

enum class LogFormat { kText, kJson };
enum class Action { kServe, kPlan, kHelp, kVersion };

struct ServerConfig {
  Action action = Action::kServe;
  EngineConfig engine;  // n_text_tokens is set later, from the tokenizer
  HttpConfig http;
  GrpcConfig grpc;
  std::optional<ListenAddress> admin;  // health and metrics on a port of their own
  std::string api_key_file;            // empty: everybody may call
  std::string tokenizer_directory;     // empty: the model's
  std::string chat_template_file;      // empty: the tokenizer's
  std::vector<int32_t> eos_ids;        // empty: the model's
  std::string served_model_name;       // empty in the flags: the last part of the model's folder
  absl::Duration drain_grace = absl::Seconds(5);
  absl::Duration drain_deadline = absl::Seconds(45);
  std::string log_level = "info";
  LogFormat log_format = LogFormat::kText;
  std::string port_file;  // where to write the ports in use, as JSON; empty: nowhere
};

// `args` without the program's name. INVALID_ARGUMENT names the flag, or the file and key, and the value at
// fault. With --help or --version nothing else is checked.
StatusOr<ServerConfig> ParseConfig(absl::Span<const std::string> args);

std::string HelpText();
std::string VersionText();  // "t6d 0.1.0"

}  // namespace t6::server
