#include "clients/cli/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <string_view>

#include "clients/cli/text.h"

namespace t6::cli {
namespace {

constexpr std::array kCommands = {"ask", "chat", "models", "health"};

struct Flag {
  std::string_view name;
  std::string_view commands;  // which accept it
  bool takes_value;
  // Returns what is wrong with the value, or nothing.
  std::function<std::string(Options&, const std::string&)> set;
};

template <typename Number>
std::string ParseNumber(const std::string& text, Number lowest, Number highest, std::optional<Number>& out) {
  Number value{};
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end || !(value >= lowest && value <= highest)) {
    return fmt::format("'{}' is not a number from {} to {}", text, lowest, highest);
  }
  out = value;
  return "";
}

const std::vector<Flag>& Flags() {
  static const auto* flags = new std::vector<Flag>{
      {"--server", "ask chat models health", true,
       [](Options& o, const std::string& v) {
         o.server = v;
         return v.find(':') == std::string::npos ? fmt::format("'{}' is not HOST:PORT", v) : std::string();
       }},
      {"--model", "ask chat", true, [](Options& o, const std::string& v) { return o.model = v, ""; }},
      {"--document", "ask chat", true, [](Options& o, const std::string& v) { return o.document = v, ""; }},
      {"--system", "ask chat", true, [](Options& o, const std::string& v) { return o.system = v, ""; }},
      {"--temperature", "ask chat", true,
       [](Options& o, const std::string& v) { return ParseNumber(v, 0.0f, 100.0f, o.temperature); }},
      {"--max-tokens", "ask chat", true,
       [](Options& o, const std::string& v) { return ParseNumber(v, 1, INT32_MAX, o.max_tokens); }},
      {"--seed", "ask chat", true,
       [](Options& o, const std::string& v) { return ParseNumber<uint64_t>(v, 0, UINT64_MAX, o.seed); }},
      {"--stats", "ask chat", false, [](Options& o, const std::string&) { return o.stats = true, ""; }},
      {"--json", "ask models health", false,
       [](Options& o, const std::string&) { return o.json = true, ""; }},
  };
  return *flags;
}

bool Accepts(const Flag& flag, const std::string& command) {
  size_t at = flag.commands.find(command);
  return at != std::string_view::npos;
}

std::string CheckWhole(const Options& options) {
  const std::string& command = options.command;
  size_t n = options.arguments.size();
  if (command == "ask" && n == 0) return "ask needs a question: t6 ask --document FILE \"question\"";
  if ((command == "chat" || command == "models") && n > 0) {
    return fmt::format("{} takes no argument, but got '{}'", command, options.arguments[0]);
  }
  if (command == "health" && n > 1) return "health takes one service at most";
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

// Takes the flag at `at` and its value, and moves `at` to the last of the two.
std::string TakeFlag(const std::vector<std::string>& arguments, size_t& at, Options& options) {
  const std::string& argument = arguments[at];
  size_t equals = argument.find('=');
  std::string name = argument.substr(0, equals);
  auto flag = std::find_if(Flags().begin(), Flags().end(), [&](const Flag& f) { return f.name == name; });
  if (flag == Flags().end()) return fmt::format("unknown flag '{}'", name);
  if (!Accepts(*flag, options.command)) return fmt::format("{} has no flag '{}'", options.command, name);
  std::string value;
  if (equals != std::string::npos) {
    if (!flag->takes_value) return fmt::format("{} takes no value", name);
    value = argument.substr(equals + 1);
  } else if (flag->takes_value) {
    if (++at == arguments.size()) return fmt::format("{} needs a value", name);
    value = arguments[at];
  }
  std::string error = flag->set(options, value);
  return error.empty() ? "" : fmt::format("{}: {}", name, error);
}

}  // namespace

ParseResult Parse(const std::vector<std::string>& arguments) {
  ParseResult result;
  Options& options = result.options;
  if (arguments.empty()) return {{}, "what to do? One of: ask, chat, models, health"};
  for (const std::string& argument : arguments) {
    if (argument == "--") break;
    if (argument == "--help" || argument == "-h" || argument == "help") options.help = true;
  }
  options.command = arguments[0];
  if (std::find(kCommands.begin(), kCommands.end(), options.command) == kCommands.end()) {
    if (!options.help) {
      result.error = fmt::format("unknown command '{}'; one of: ask, chat, models, health", options.command);
    }
    options.command.clear();
    return result;
  }
  if (options.help) return result;
  bool flags_end = false;
  for (size_t i = 1; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (!flags_end && argument == "--") {
      flags_end = true;
    } else if (!flags_end && argument.size() > 1 && argument[0] == '-') {
      result.error = TakeFlag(arguments, i, options);
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
  constexpr char kServer[] = "  --server HOST:PORT   the server's gRPC address; default: 127.0.0.1:50051\n";
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
  return "usage: t6 COMMAND [flags]\n\n"
         "A client for t6d, over gRPC.\n\n"
         "  t6 ask --document FILE \"question\" ...   ask about a document\n"
         "  t6 chat                                 talk with the model\n"
         "  t6 models                               what the server has\n"
         "  t6 health                               whether it takes requests\n\n"
         "t6 COMMAND --help says more.\n"
         "Exit codes: 0 done; 1 the server refused or failed; 2 wrong usage; 3 no server there; 130 "
         "interrupted.\n";
}

}  // namespace t6::cli
