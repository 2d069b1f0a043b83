#include "clients/cli/bench/bench_options.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "clients/cli/flags.h"
#include "clients/cli/options.h"
#include "clients/cli/text.h"

namespace t6::cli {
namespace {

constexpr char kCommand[] = "bench";
constexpr int kMostClients = 10'000;
constexpr int64_t kMostRequests = 1'000'000;
constexpr double kLongest = 24 * 3600;

// "90", "90s", "500ms", "2m"
std::string ParseSeconds(const std::string& text, double lowest, double highest, double& out) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  const std::string_view unit(rest, static_cast<size_t>(end - rest));
  const double scale = unit.empty() || unit == "s" ? 1 : unit == "ms" ? 0.001 : unit == "m" ? 60 : 0;
  value *= scale;
  if (error != std::errc() || scale == 0 || !(value >= lowest && value <= highest))
    return fmt::format("'{}' is not a time from {}s to {}s, such as 30s or 2m", text, lowest, highest);
  out = value;
  return "";
}

std::string CheckServiceConfig(const std::string& config) {
  return nlohmann::json::parse(config, nullptr, false).is_object() ? "" : "it is not a JSON object";
}

using BenchFlag = Flag<BenchOptions>;

template <typename Number>
BenchFlag NumberFlag(const char* name, Number lowest, Number highest, auto BenchOptions::*field) {
  return {name, kCommand, true, [=](BenchOptions& o, const std::string& v) {
            return ParseNumber<Number>(v, lowest, highest, o.*field);
          }};
}

BenchFlag TextFlag(const char* name, std::string BenchOptions::*field) {
  return {name, kCommand, true, [=](BenchOptions& o, const std::string& v) { return o.*field = v, ""; }};
}

BenchFlag Switch(const char* name, bool BenchOptions::*field) {
  return {name, kCommand, false, [=](BenchOptions& o, const std::string&) { return o.*field = true, ""; }};
}

std::vector<BenchFlag> ServerFlags() {
  return {
      TextFlag("--grpc", &BenchOptions::grpc),
      TextFlag("--server", &BenchOptions::grpc),  // as the other commands name it
      TextFlag("--http", &BenchOptions::http),
      TextFlag("--model", &BenchOptions::model),
      {"--service-config", kCommand, true,
       [](BenchOptions& o, const std::string& v) {
         const std::string error = ValueOrFile(v, o.service_config);
         return error.empty() ? CheckServiceConfig(o.service_config) : error;
       }},
      {"--api-key", kCommand, true,
       [](BenchOptions& o, const std::string& v) { return ParseKey(v, o.api_key); }},
      NumberFlag("--max-tokens", 1, INT32_MAX, &BenchOptions::max_tokens),
      NumberFlag("--temperature", 0.0f, 2.0f, &BenchOptions::temperature),
      Switch("--ignore-eos", &BenchOptions::ignore_eos),
  };
}

std::vector<BenchFlag> LoadFlags() {
  return {
      NumberFlag("--concurrency", 1, kMostClients, &BenchOptions::concurrency),
      NumberFlag("--rate", 0.001, 100'000.0, &BenchOptions::rate),
      NumberFlag("--max-in-flight", 1, kMostClients, &BenchOptions::max_in_flight),
      NumberFlag<int64_t>("--requests", 1, kMostRequests, &BenchOptions::requests),
      NumberFlag<int64_t>("--warmup", 0, kMostRequests, &BenchOptions::warmup),
      {"--duration", kCommand, true,
       [](BenchOptions& o, const std::string& v) {
         return ParseSeconds(v, 0.001, kLongest, o.duration.emplace());
       }},
      {"--timeout", kCommand, true,
       [](BenchOptions& o, const std::string& v) { return ParseSeconds(v, 0.001, kLongest, o.timeout); }},
  };
}

std::vector<BenchFlag> PromptAndReportFlags() {
  return {
      TextFlag("--prompts", &BenchOptions::prompts),
      NumberFlag("--documents", 1, 100'000, &BenchOptions::documents),
      NumberFlag("--questions", 1, 1000, &BenchOptions::questions),
      NumberFlag("--document-words", 8, 1'000'000, &BenchOptions::document_words),
      NumberFlag("--document-tokens", 16, 1'000'000, &BenchOptions::document_tokens),
      {"--system", kCommand, true, [](BenchOptions& o, const std::string& v) { return o.system = v, ""; }},
      Switch("--affinity", &BenchOptions::affinity),
      NumberFlag<uint64_t>("--seed", 0, INT64_MAX, &BenchOptions::seed),
      TextFlag("--json", &BenchOptions::json),
      TextFlag("--svg", &BenchOptions::svg),
      TextFlag("--samples", &BenchOptions::samples),
      Switch("--quiet", &BenchOptions::quiet),
  };
}

const std::vector<BenchFlag>& Flags() {
  static const auto* flags = [] {
    auto* all = new std::vector<BenchFlag>(ServerFlags());
    for (auto& flag : LoadFlags()) all->push_back(std::move(flag));
    for (auto& flag : PromptAndReportFlags()) all->push_back(std::move(flag));
    return all;
  }();
  return *flags;
}

std::string CheckWhole(const BenchOptions& options, const std::vector<std::string>& given) {
  const auto has = [&](std::string_view name) {
    return std::find(given.begin(), given.end(), name) != given.end();
  };
  const auto both = [&](const char* one, const char* other) {
    return has(one) && has(other) ? fmt::format("{} and {} exclude each other", one, other) : "";
  };
  for (const auto& [one, other] :
       {std::pair{"--http", "--grpc"}, std::pair{"--http", "--server"},
        std::pair{"--http", "--service-config"}, std::pair{"--rate", "--concurrency"},
        std::pair{"--prompts", "--documents"}, std::pair{"--prompts", "--questions"},
        std::pair{"--prompts", "--document-words"}, std::pair{"--prompts", "--document-tokens"},
        std::pair{"--document-words", "--document-tokens"}}) {
    if (std::string error = both(one, other); !error.empty()) return error;
  }
  if (has("--max-in-flight") && !options.rate) return "--max-in-flight needs --rate";
  if (options.system && !IsUtf8(*options.system)) return "--system is not valid UTF-8";
  if (!IsUtf8(options.model)) return "--model is not valid UTF-8";
  if (options.http.empty()) {
    if (std::string error = CheckTarget(options.grpc); !error.empty()) return "--grpc: " + error;
  }
  return "";
}

}  // namespace

BenchParseResult ParseBench(const std::vector<std::string>& arguments) {
  BenchParseResult result;
  std::vector<std::string> given;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!arguments[i].starts_with("--")) {
      result.error = fmt::format("bench takes no argument, but got '{}'", arguments[i]);
      return result;
    }
    given.push_back(arguments[i].substr(0, arguments[i].find('=')));
    result.error = TakeFlag(Flags(), kCommand, arguments, i, result.options);
    if (!result.error.empty()) return result;
  }
  result.error = CheckWhole(result.options, given);
  BenchOptions& options = result.options;
  if (!options.requests) options.requests = options.duration ? kMostRequests : 100;
  return result;
}

std::string BenchHelp() {
  return fmt::format(
      R"(usage: t6 bench [--grpc HOST:PORT | --http URL] [--concurrency N | --rate R] [flags]

Asks a server many questions about documents, streamed, and says how fast the answers came.

The server
  --grpc HOST:PORT       its gRPC address; default: 127.0.0.1:50051
  --http URL             over HTTP instead, such as http://127.0.0.1:8000
  --service-config JSON  gRPC's retries and balancing; @FILE reads it from a file
  --api-key KEY          sent as Authorization: Bearer KEY; @FILE reads it from a file
  --model NAME           default: the server's first

The load
  --concurrency N        closed loop: N clients, each asks again once it is answered; default: 8
  --rate R               open loop: R requests a second on average, at random moments (Poisson), whether
                         earlier ones are answered or not; times count from the moment a request was due
  --max-in-flight N      open loop: what would be sent beyond N is counted as not sent; default: 1000
  --requests N           end after N requests; default: 100, or with --duration a million
  --duration TIME        end after TIME (30s, 2m); what was sent is still waited for
  --timeout TIME         for one request; default: 60s
  --warmup N             ask N requests before those that count

The prompts: each question of each document once in random order, then again
  --prompts FILE         JSON lines of {{"messages": [...]}}, or a JSON list of
                         {{"document": "...", "questions": ["..." or {{"question": "..."}}]}}
  --documents N          without a file: N made-up documents; default: 16
  --document-words N     each of about N words; default: 300
  --document-tokens N    each of about N tokens, as the server counts
  --questions N          about each; default: 8
  --system TEXT          the instruction before a document; default:
                         {}
  --affinity             send x-t6-context, one value for each document, for a balancer to hash
  --max-tokens N         end an answer after N tokens; default: 32
  --ignore-eos           never end it before
  --temperature X        default: 0
  --seed N               same seed, same prompts in the same order at the same moments; default: 1

The report, besides the table on standard output
  --json FILE            all figures, for programs; - is standard output, and no table
  --svg FILE             latency and throughput as a picture
  --samples FILE         one JSON object a line for every request
  --quiet                no progress on standard error

Exit codes: 0 all answered; 1 some failed; 2 wrong usage; 3 no server there; 130 interrupted (the report
is of what was asked until then).
)",
      kDefaultSystem);
}

}  // namespace t6::cli
