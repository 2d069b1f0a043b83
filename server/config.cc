#include "server/config.h"

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/ascii.h"
#include "engine/base/read_file.h"
#include "server/config_values.h"
#include "server/error_map.h"
#include "server/request_id.h"

namespace t6::server {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kMaxTokenId = 1 << 30;

struct Option {
  enum Kind { kValue, kRepeated, kSwitch };  // kSwitch: no value, and no key of the file
  const char* name;
  const char* value;
  Kind kind;
  const char* help;
  Status (*set)(ServerConfig& config, std::string_view text);
};

// Puts what `parse` gave into `field`.
template <typename Field, typename Value>
Status Assign(Field& field, StatusOr<Value> value) {
  if (!value.ok()) return value.status();
  field = static_cast<Field>(*std::move(value));
  return absl::OkStatus();
}

Status AssignText(std::string& field, std::string_view text) {
  if (text.empty()) return InvalidArgument("\"\" is empty");
  if (text.find('\0') != text.npos) return InvalidArgument("the text contains a zero byte");
  field = text;
  return absl::OkStatus();
}

Status SetServedName(ServerConfig& c, std::string_view text) {
  T6_RETURN_IF_ERROR(AssignText(c.served_model_name, text));
  for (unsigned char byte : text) {
    if (byte <= ' ' || byte == 0x7f)
      return InvalidArgument("\"{}\" contains a space or a control character", Clipped(text));
  }
  if (text.size() > 256) return InvalidArgument("the name has {} bytes; 256 are the most", text.size());
  return absl::OkStatus();
}

Status AddOverride(ServerConfig& c, std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == 0 || equals == text.npos) return InvalidArgument("\"{}\" is not KEY=VALUE", Clipped(text));
  const std::string key(text.substr(0, equals));
  if (!c.engine.model_overrides.emplace(key, text.substr(equals + 1)).second) {
    return InvalidArgument("\"{}\" is overridden twice", Clipped(key));
  }
  return absl::OkStatus();
}

Status AddEosId(ServerConfig& c, std::string_view text) {
  T6_ASSIGN_OR_RETURN(const int64_t id, ParseInteger(text, 0, kMaxTokenId));
  c.eos_ids.push_back(static_cast<int32_t>(id));
  return absl::OkStatus();
}

// As a browser sends it: scheme and authority in lower case, nothing after them.
Status AddCorsOrigin(ServerConfig& c, std::string_view text) {
  const size_t scheme = text.find("://");
  const bool has_authority = scheme != text.npos && scheme > 0 && scheme + 3 < text.size();
  if (text != "*" && (!has_authority || text.find('/', scheme + 3) != text.npos || !IsValidRequestId(text))) {
    return InvalidArgument("\"{}\" is neither * nor an origin such as https://example.org", Clipped(text));
  }
  c.http.cors_origins.push_back(absl::AsciiStrToLower(AbslView(text)));
  return absl::OkStatus();
}

// As it stands in a Host header, without the port.
Status AddAllowedHost(ServerConfig& c, std::string_view text) {
  if (text != "*" && (text.find_first_of("/:*[]@ ") != text.npos || !IsValidRequestId(text))) {
    return InvalidArgument("\"{}\" is neither * nor a name such as llm.example.org", Clipped(text));
  }
  c.http.allowed_hosts.push_back(absl::AsciiStrToLower(AbslView(text)));
  return absl::OkStatus();
}

Status SetCacheBytes(ServerConfig& c, std::string_view text) {
  if (text == "auto") {
    c.engine.cache_bytes = 0;
    return absl::OkStatus();
  }
  T6_RETURN_IF_ERROR(Assign(c.engine.cache_bytes, ParseSize(text)));
  return c.engine.cache_bytes > 0 ? absl::OkStatus()
                                  : InvalidArgument("{} leaves no cache; auto is the default", Clipped(text));
}

Status SetLogFormat(ServerConfig& c, std::string_view text) {
  if (auto choice = ParseChoice(text, {"text", "json"}); !choice.ok()) return choice.status();
  c.log_format = text == "json" ? LogFormat::kJson : LogFormat::kText;
  return absl::OkStatus();
}

Status SetAction(ServerConfig& c, Action action) {
  c.action = action;
  return absl::OkStatus();
}

using C = ServerConfig;
using View = std::string_view;
constexpr Option kOptions[] = {
    {"model", "DIR", Option::kValue, "folder of the checkpoint (required)",
     [](C& c, View v) { return AssignText(c.engine.model_directory, v); }},
    {"http", "ADDR:PORT", Option::kValue, "HTTP listens here; port 0 takes any (127.0.0.1:8000)",
     [](C& c, View v) { return Assign(c.http.address, ParseAddress(v)); }},
    {"grpc", "ADDR:PORT", Option::kValue, "gRPC listens here; port 0 takes any (127.0.0.1:50051)",
     [](C& c, View v) { return Assign(c.grpc.address, ParseAddress(v)); }},
    {"admin", "ADDR:PORT", Option::kValue,
     "health, readiness, metrics, version over HTTP here; /metrics then only here (off)",
     [](C& c, View v) { return Assign(c.admin.emplace(), ParseAddress(v)); }},
    {"api-key-file", "FILE", Option::kValue,
     "who may call: lines TENANT sha256:HEX, made by `t6 key`; SIGHUP reads it again (everybody)",
     [](C& c, View v) { return AssignText(c.api_key_file, v); }},
    {"cors-origin", "ORIGIN", Option::kRepeated,
     "web pages from here may call over HTTP, * is any; may be repeated (none)", AddCorsOrigin},
    {"allowed-host", "NAME", Option::kRepeated,
     "answer over HTTP to this Host alone, * is any; may be repeated (any; pages only to loopback names "
     "while it "
     "listens there without keys)",
     AddAllowedHost},
    {"device", "auto|cpu|cuda", Option::kValue, "where the model runs (auto)",
     [](C& c, View v) {
       return Assign(c.engine.device, ParseChoice(v, {"auto", "cpu", "cuda"}));
     }},
    {"dtype", "bf16|f32", Option::kValue, "weights and products (bf16)",
     [](C& c, View v) {
       return Assign(c.engine.dtype, ParseChoice(v, {"bf16", "f32"}));
     }},
    {"cache-dtype", "auto|bf16|f32|fp8", Option::kValue,
     "cached factors (auto: as --dtype; fp8 is half of bf16's bytes, rounded to 4 bits)",
     [](C& c, View v) {
       return Assign(c.engine.cache_dtype, ParseChoice(v, {"auto", "bf16", "f32", "fp8"}));
     }},
    {"cache-bytes", "auto|SIZE", Option::kValue,
     "memory for cached factors, such as 4GiB (auto: from what is free)", SetCacheBytes},
    {"threads", "N", Option::kValue, "compute threads (0: by CPU affinity and quota)",
     [](C& c, View v) { return Assign(c.engine.threads, ParseInteger(v, 0, 1024)); }},
    {"max-context", "N", Option::kValue, "longest prompt and output together, in tokens (0: the model's)",
     [](C& c, View v) { return Assign(c.engine.max_context, ParseInteger(v, 0, 1 << 24)); }},
    {"max-num-seqs", "N", Option::kValue, "sequences that run at once (64)",
     [](C& c, View v) { return Assign(c.engine.max_num_seqs, ParseInteger(v, 1, 4096)); }},
    {"max-step-rows", "N", Option::kValue,
     "tokens computed in one step at most; workspaces grow with them (512 on a CPU, 8192 on a GPU)",
     [](C& c, View v) { return Assign(c.engine.max_step_rows, ParseInteger(v, 16, 1 << 16)); }},
    {"max-step-ms", "MS", Option::kValue,
     "estimated cost of one step at most, which keeps decoding smooth (25)",
     [](C& c, View v) { return Assign(c.engine.max_step_ms, ParseDecimal(v, 0.1, 60000)); }},
    {"max-queued-requests", "N", Option::kValue, "requests that wait; more are refused with 429 (1024)",
     [](C& c, View v) { return Assign(c.engine.max_queued_requests, ParseInteger(v, 1, 1000000)); }},
    {"max-queued-per-tenant", "N", Option::kValue,
     "requests of one tenant that wait, where there are API keys (half of --max-queued-requests)",
     [](C& c, View v) { return Assign(c.engine.max_queued_per_tenant, ParseInteger(v, 1, 1000000)); }},
    {"variant", "NAME", Option::kValue, "the model's architecture (derived from the checkpoint)",
     [](C& c, View v) { return AssignText(c.engine.variant, v); }},
    {"model-override", "KEY=VALUE", Option::kRepeated, "replaces a value of config.json; may be repeated",
     AddOverride},
    {"tokenizer", "DIR", Option::kValue, "folder of tokenizer.json (the model's)",
     [](C& c, View v) { return AssignText(c.tokenizer_directory, v); }},
    {"chat-template", "FILE", Option::kValue, "Jinja template for chat (the tokenizer's)",
     [](C& c, View v) { return AssignText(c.chat_template_file, v); }},
    {"eos-id", "ID", Option::kRepeated, "token that ends the output; may be repeated (the model's)",
     AddEosId},
    {"served-model-name", "NAME", Option::kValue, "the name that requests give (the last part of --model)",
     SetServedName},
    {"drain-grace", "TIME", Option::kValue, "after SIGTERM, still serve while balancers notice (5s)",
     [](C& c, View v) { return Assign(c.drain_grace, ParseDuration(v)); }},
    {"drain-deadline", "TIME", Option::kValue, "then wait this long for what is in flight (45s)",
     [](C& c, View v) { return Assign(c.drain_deadline, ParseDuration(v)); }},
    {"log-level", "LEVEL", Option::kValue, "trace, debug, info, warn, error or off (info)",
     [](C& c, View v) {
       return Assign(c.log_level, ParseChoice(v, {"trace", "debug", "info", "warn", "error", "off"}));
     }},
    {"log-format", "text|json", Option::kValue, "one line each, for people or machines (text)", SetLogFormat},
    {"port-file", "FILE", Option::kValue, "write the ports in use here as JSON once they listen",
     [](C& c, View v) { return AssignText(c.port_file, v); }},
    {"config", "FILE", Option::kValue, "JSON object with these names as keys; flags win", nullptr},
    {"plan", nullptr, Option::kSwitch, "print the memory plan and exit",
     [](C& c, View) { return SetAction(c, Action::kPlan); }},
    {"help", nullptr, Option::kSwitch, "print this and exit",
     [](C& c, View) { return SetAction(c, Action::kHelp); }},
    {"version", nullptr, Option::kSwitch, "print the version and exit",
     [](C& c, View) { return SetAction(c, Action::kVersion); }},
};

const Option* FindOption(std::string_view name) {
  for (const Option& option : kOptions) {
    if (name == option.name) return &option;
  }
  return nullptr;
}

// What was given for one option, and where, for messages: "--http" or "t6d.json: http".
struct Given {
  std::string where;
  std::vector<std::string> values;
};
using GivenMap = std::map<std::string, Given>;

StatusOr<GivenMap> ReadFlags(absl::Span<const std::string> args) {
  GivenMap given;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string_view arg = args[i];
    if (arg.substr(0, 2) != "--") return InvalidArgument("\"{}\" is not a flag; see --help", Clipped(arg));
    const size_t equals = arg.find('=');
    const std::string name(arg.substr(2, equals == arg.npos ? arg.npos : equals - 2));
    const Option* option = FindOption(name);
    if (option == nullptr) return InvalidArgument("--{} is unknown; see --help", Clipped(name));
    Given& entry = given.try_emplace(name, Given{fmt::format("--{}", name), {}}).first->second;
    if (!entry.values.empty() && option->kind != Option::kRepeated)
      return InvalidArgument("--{} is given twice", name);
    if (option->kind == Option::kSwitch) {
      if (equals != arg.npos)
        return InvalidArgument("--{} takes no value, but has \"{}\"", name, arg.substr(equals + 1));
      entry.values.emplace_back();
    } else if (equals != arg.npos) {
      entry.values.emplace_back(arg.substr(equals + 1));
    } else if (i + 1 < args.size()) {
      entry.values.push_back(args[++i]);
    } else {
      return InvalidArgument("--{} needs a value: {}", name, option->value);
    }
  }
  return given;
}

// A value of the file as the text that the flag would have.
StatusOr<std::string> TextOf(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number()) return value.dump();
  return InvalidArgument("{} is neither a string nor a number",
                         Clipped(value.dump(-1, ' ', true, json::error_handler_t::replace)));
}

StatusOr<std::vector<std::string>> TextsOf(const json& value, const Option& option) {
  std::vector<std::string> texts;
  if (option.kind == Option::kRepeated && value.is_array()) {
    for (const json& element : value) {
      T6_ASSIGN_OR_RETURN(std::string text, TextOf(element));
      texts.push_back(std::move(text));
    }
  } else if (option.kind == Option::kRepeated && value.is_object()) {
    for (const auto& [key, element] : value.items()) {
      T6_ASSIGN_OR_RETURN(const std::string text, TextOf(element));
      texts.push_back(fmt::format("{}={}", key, text));
    }
  } else {
    T6_ASSIGN_OR_RETURN(std::string text, TextOf(value));
    texts.push_back(std::move(text));
  }
  return texts;
}

StatusOr<GivenMap> ReadJson(const std::string& path, const std::string& text) {
  std::set<std::string> keys;
  std::string twice;
  const auto note_keys = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::key && depth == 1 && !keys.insert(parsed.get<std::string>()).second) {
      twice = parsed.get<std::string>();
    }
    return depth <= 4;  // deeper is no value of ours: do not even build it
  };
  json root;
  try {
    root = json::parse(text, note_keys);
  } catch (const json::exception& error) {
    const std::string_view what = error.what();  // "[json.exception...] parse error at line 1, column 5: ..."
    return InvalidArgument("is not JSON: {}", what.substr(what.find("] ") + 2, 256));
  }
  if (!root.is_object()) return InvalidArgument("is not a JSON object");
  if (!twice.empty()) return InvalidArgument("\"{}\" stands there twice", Clipped(twice));
  GivenMap given;
  for (const auto& [key, value] : root.items()) {
    const Option* option = FindOption(key);
    if (option == nullptr) return InvalidArgument("\"{}\" is unknown; see --help", Clipped(key));
    if (option->kind == Option::kSwitch || option->set == nullptr) {
      return InvalidArgument("\"{}\" works as a flag only", key);
    }
    auto texts = TextsOf(value, *option);
    if (!texts.ok()) return Annotate(texts.status(), key);
    given.emplace(key, Given{fmt::format("{}: {}", path, key), *std::move(texts)});
  }
  return given;
}

Status Validate(ServerConfig& config) {
  if (config.engine.model_directory.empty())
    return InvalidArgument("--model is missing: the folder of the checkpoint");
  std::vector<std::pair<std::string_view, ListenAddress>> addresses = {{"--http", config.http.address},
                                                                       {"--grpc", config.grpc.address}};
  if (config.admin.has_value()) addresses.emplace_back("--admin", *config.admin);
  for (size_t i = 0; i < addresses.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const auto& [name, address] = addresses[i];
      const auto& [other_name, other] = addresses[j];
      if (address.port != 0 && address.port == other.port && address.host == other.host)
        return InvalidArgument("{} and {} are both {}", other_name, name, address.ToString());
    }
  }
  config.grpc.max_concurrent_streams = config.engine.max_num_seqs + config.engine.max_queued_requests;
  if (config.served_model_name.empty()) {
    fs::path folder = fs::absolute(config.engine.model_directory).lexically_normal();
    if (!folder.has_filename()) folder = folder.parent_path();
    Status named = SetServedName(config, folder.filename().string());
    if (!named.ok()) {
      return InvalidArgument("--model {} gives no name to serve ({}); --served-model-name can",
                             config.engine.model_directory, MessageOf(named));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string ListenAddress::ToString() const {
  return host.find(':') == host.npos ? fmt::format("{}:{}", host, port) : fmt::format("[{}]:{}", host, port);
}

StatusOr<ServerConfig> ParseConfig(absl::Span<const std::string> args) {
  T6_ASSIGN_OR_RETURN(GivenMap given, ReadFlags(args));
  ServerConfig config;
  for (const char* name : {"help", "version"}) {
    if (given.count(name) == 0) continue;
    T6_RETURN_IF_ERROR(FindOption(name)->set(config, ""));
    return config;
  }
  if (auto file = given.find("config"); file != given.end()) {
    const std::string& path = file->second.values.front();
    auto text = ReadTextFile(path, kMaxConfigBytes);
    if (!text.ok()) return Annotate(text.status(), "--config");
    auto from_file = ReadJson(path, *text);
    if (!from_file.ok()) return Annotate(from_file.status(), path);
    given.merge(*from_file);  // what the flags gave stays
  }
  for (const auto& [name, entry] : given) {
    const Option* option = FindOption(name);
    if (option->set == nullptr) continue;
    for (const std::string& text : entry.values) {
      if (Status set = option->set(config, text); !set.ok()) return Annotate(set, entry.where);
    }
  }
  T6_RETURN_IF_ERROR(Validate(config));
  return config;
}

std::string HelpText() {
  std::string text =
      "t6d serves a T6 (Tensor Product Attention) language model over gRPC and OpenAI-style HTTP.\n\n"
      "  t6d --model DIR [flags]\n\n";
  for (const Option& option : kOptions) {
    const std::string left = option.value == nullptr ? fmt::format("--{}", option.name)
                                                     : fmt::format("--{} {}", option.name, option.value);
    text += fmt::format("  {:<31} {}\n", left, option.help);
  }
  return text;
}

std::string VersionText() { return "t6d " T6_VERSION; }

}  // namespace t6::server
