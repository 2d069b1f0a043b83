#include "clients/cli/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

#include "clients/cli/bench/bench_options.h"
#include "clients/cli/flags.h"
#include "clients/cli/text.h"

namespace t6::cli {
namespace {

constexpr std::array kCommands = {"ask", "chat", "models", "health", "bench", "key"};

const std::vector<Flag<Options>>& Flags() {
  static const auto* flags = new std::vector<Flag<Options>>{
      {"--server", "ask chat models health", true,
       [](Options& o, const std::string& v) {
         o.server = v;
         return CheckTarget(v);
       }},
      {"--api-key", "ask chat models health", true,
       [](Options& o, const std::string& v) { return ParseKey(v, o.api_key); }},
      {"--model", "ask chat", true, [](Options& o, const std::string& v) { return o.model = v, ""; }},
      {"--document", "ask chat", true, [](Options& o, const std::string& v) { return o.document = v, ""; }},
      {"--system", "ask chat", true, [](Options& o, const std::string& v) { return o.system = v, ""; }},
      {"--temperature", "ask chat", true,
       [](Options& o, const std::string& v) { return ParseNumber(v, 0.0f, 2.0f, o.temperature); }},
      {"--max-tokens", "ask chat", true,
       [](Options& o, const std::string& v) { return ParseNumber(v, 1, INT32_MAX, o.max_tokens); }},
      {"--seed", "ask chat", true,
       [](Options& o, const std::string& v) { return ParseNumber<uint64_t>(v, 0, UINT64_MAX, o.seed); }},
      {"--stats", "ask chat", false, [](Options& o, const std::string&) { return o.stats = true, ""; }},
      {"--json", "ask models health key", false,
       [](Options& o, const std::string&) { return o.json = true, ""; }},
  };
  return *flags;
}

std::string CheckWhole(const Options& options) {
  const std::string& command = options.command;
  size_t n = options.arguments.size();
  if (command == "ask" && n == 0) return "ask needs a question: t6 ask --document FILE \"question\"";
  if ((command == "chat" || command == "models") && n > 0) {
    return fmt::format("{} takes no argument, but got '{}'", command, options.arguments[0]);
  }
  if (command == "health" && n > 1) return "health takes one service at most";
  // What t6d takes in its key file.
  const auto is_name_byte = [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-';
  };
  if (command == "key" &&
      (n != 1 || options.arguments[0].empty() || options.arguments[0].size() > 64 ||
       !std::all_of(options.arguments[0].begin(), options.arguments[0].end(), is_name_byte))) {
    return "key takes one tenant's name: 1 to 64 letters, digits, dots, dashes, underscores";
  }
  if (command == "chat" && options.document == "-")
    return "chat reads what you type; --document needs a file";
  for (const std::string& text : options.arguments) {
    if (!IsUtf8(text)) return "the question is not valid UTF-8";
    if (command == "ask" && Trim(text).empty()) return "the question is empty";
  }
  if (options.system && !IsUtf8(*options.system)) return "--system is not valid UTF-8";
  if (!IsUtf8(options.model)) return "--model is not valid UTF-8";
  return "";
}

}  // namespace

ParseResult Parse(const std::vector<std::string>& arguments) {
  ParseResult result;
  Options& options = result.options;
  if (arguments.empty()) return {{}, "what to do? One of: ask, chat, models, health, bench, key"};
  for (const std::string& argument : arguments) {
    if (argument == "--") break;
    if (argument == "--help" || argument == "-h") options.help = true;
  }
  options.command = arguments[0];
  if (options.command == "help") options.help = true;
  if (std::find(kCommands.begin(), kCommands.end(), options.command) == kCommands.end()) {
    if (!options.help) {
      result.error =
          fmt::format("unknown command '{}'; one of: ask, chat, models, health, bench, key", options.command);
    }
    options.command.clear();
    return result;
  }
  if (options.help) return result;
  if (options.command == "bench") {  // has flags of its own
    options.arguments.assign(arguments.begin() + 1, arguments.end());
    return result;
  }
  bool flags_end = false;
  for (size_t i = 1; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!flags_end && argument == "--") {
      flags_end = true;
    } else if (!flags_end && argument.size() > 1 && argument[0] == '-') {
      result.error = TakeFlag(Flags(), options.command, arguments, i, options);
      if (!result.error.empty()) return result;
    } else {
      options.arguments.push_back(argument);
    }
  }
  result.error = CheckWhole(options);
  return result;
}

std::string Help(const std::string& command) {
  constexpr char kGeneration[] =
      "  --model NAME         which of the server's models; default: its first\n"
      "  --temperature X      0 takes the most likely token each time; default: the model's own\n"
      "  --max-tokens N       end the answer after N tokens\n"
      "  --seed N             the same draws each time\n"
      "  --stats              after each answer: tokens, how many were cached, times (on standard error)\n";
  constexpr char kServer[] =
      "  --server HOST:PORT   the server's gRPC address; default: 127.0.0.1:50051\n"
      "  --api-key KEY        sent as Authorization: Bearer KEY; @FILE reads it from a file\n";
  if (command == "ask") {
    return fmt::format(
        "usage: t6 ask [--document FILE] [flags] \"question\" ...\n\n"
        "Answers each question on a line of its own. The document is computed once and reused by the later "
        "ones.\n\n"
        "  --document FILE      what the questions are about, a UTF-8 text; - is standard input\n"
        "  --system TEXT        the instruction before the document; default:\n"
        "                       {}\n"
        "  --json               one JSON object a line: question, answer, usage, times\n{}{}",
        kDefaultSystem, kGeneration, kServer);
  }
  if (command == "chat") {
    return fmt::format(
        "usage: t6 chat [flags]\n\n"
        "A conversation: type a line, read the answer. /exit or ctrl-D ends it, ctrl-C stops an answer.\n\n"
        "  --document FILE      talk about this document\n"
        "  --system TEXT        the system message (with --document: the instruction before it)\n{}{}",
        kGeneration, kServer);
  }
  if (command == "models") {
    return fmt::format(
        "usage: t6 models [flags]\n\nLists the server's models.\n\n"
        "  --json               as JSON\n{}",
        kServer);
  }
  if (command == "health") {
    return fmt::format(
        "usage: t6 health [SERVICE] [flags]\n\n"
        "Asks whether the server, or one of its services (t6.v1.Chat), takes requests; exit code 0 if so, 1 "
        "if not.\n\n"
        "  --json               as JSON\n{}",
        kServer);
  }
  if (command == "bench") return BenchHelp();
  if (command == "key") {
    return "usage: t6 key TENANT [flags]\n\n"
           "Makes an API key. The line for t6d's --api-key-file goes to standard output, the key itself to "
           "standard error:\n"
           "    t6 key acme >> /etc/t6d/keys\n"
           "Several keys may name one tenant; tenants never share cached prefixes.\n\n"
           "  --json               both as one JSON object\n";
  }
  return "usage: t6 COMMAND [flags]\n\n"
         "A client for t6d, over gRPC; bench also over HTTP.\n\n"
         "  t6 ask --document FILE \"question\" ...   ask about a document\n"
         "  t6 chat                                 talk with the model\n"
         "  t6 models                               what the server has\n"
         "  t6 health                               whether it takes requests\n"
         "  t6 bench                                load it and measure\n"
         "  t6 key TENANT                           make an API key\n\n"
         "t6 COMMAND --help says more.\n"
         "Exit codes: 0 done; 1 the server refused or failed; 2 wrong usage; 3 no server there; 130 "
         "interrupted.\n";
}

}  // namespace t6::cli
