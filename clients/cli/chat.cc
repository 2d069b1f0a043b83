// t6 ask and t6 chat.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "clients/cli/commands.h"
#include "clients/cli/generate.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/text.h"

namespace t6::cli {
namespace {

// Prints an answer as it comes, without the white space that many models put before it.
class LivePrinter {
 public:
  void operator()(std::string_view piece) {
    if (!started_) piece.remove_prefix(std::min(piece.find_first_not_of(" \t\r\n"), piece.size()));
    if (piece.empty()) return;
    started_ = true;
    fmt::print("{}", piece);
    std::fflush(stdout);
  }

 private:
  bool started_ = false;
};

nlohmann::ordered_json ToJson(std::string_view question, const Answer& answer) {
  return {{"question", question},
          {"answer", answer.text},
          {"finish_reason", answer.finish_reason == v1::FINISH_REASON_LENGTH ? "length" : "stop"},
          {"usage",
           {{"prompt_tokens", answer.usage.prompt_tokens()},
            {"completion_tokens", answer.usage.completion_tokens()},
            {"total_tokens", answer.usage.total_tokens()},
            {"cached_tokens", answer.usage.cached_tokens()}}},
          {"first_token_ms", answer.first_token_ms},
          {"total_ms", answer.total_ms}};
}

// Everything before the first question: the request with its system message.
ExitCode Begin(Connection& connection, const Options& options, v1::ChatCompletionRequest& request) {
  std::string system, error;
  if (!SystemMessage(options, system, error)) {
    fmt::print(stderr, "t6: {}\n", error);
    return kUsage;
  }
  if (!connection.Reach()) return kUnreachable;
  absl::Status status = NewRequest(connection, options, request);
  if (!status.ok()) return TakeInterrupted() ? kInterrupted : connection.Explain(status);
  if (!system.empty()) client::AddMessage(request, "system", system);
  return kDone;
}

}  // namespace

ExitCode RunAsk(Connection& connection, const Options& options) {
  v1::ChatCompletionRequest request;
  if (ExitCode code = Begin(connection, options, request); code != kDone) return code;
  for (const std::string& typed : options.arguments) {
    std::string_view question = Trim(typed);
    v1::ChatCompletionRequest with_question = request;
    client::AddMessage(with_question, "user", question);
    Answer answer;
    LivePrinter print;
    absl::Status status = Generate(connection, with_question, answer, [&](std::string_view piece) {
      if (!options.json) print(piece);
    });
    if (status.ok() && options.json)
      fmt::print("{}\n",
                 ToJson(question, answer).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    if (!options.json && (status.ok() || !answer.text.empty())) fmt::print("\n");
    std::fflush(stdout);
    if (!status.ok()) return TakeInterrupted() ? kInterrupted : connection.Explain(status);
    if (options.stats) fmt::print(stderr, "  ({})\n", Describe(answer));
  }
  return kDone;
}

ExitCode RunChat(Connection& connection, const Options& options) {
  v1::ChatCompletionRequest request;
  if (ExitCode code = Begin(connection, options, request); code != kDone) return code;
  const bool typed = isatty(STDIN_FILENO) != 0;
  if (typed) fmt::print("{} - /exit or ctrl-D ends, ctrl-C stops an answer\n", request.model());
  ExitCode last = kDone;
  for (std::string line;;) {
    if (typed) fmt::print("> ");
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) break;
    std::string_view text = Trim(line);
    if (text == "/exit") return last;
    if (text.empty()) continue;
    if (!IsUtf8(text)) {
      fmt::print(stderr, "t6: that line is not valid UTF-8\n");
      continue;
    }
    client::AddMessage(request, "user", text);
    Answer answer;
    absl::Status status = Generate(connection, request, answer, LivePrinter());
    fmt::print("\n");
    std::fflush(stdout);
    bool interrupted = TakeInterrupted();
    if (status.ok() || interrupted) {
      client::AddMessage(request, "assistant", answer.text);
      if (options.stats && !interrupted) fmt::print(stderr, "  ({})\n", Describe(answer));
      last = kDone;
    } else {
      request.mutable_messages()->RemoveLast();  // the question may be asked again
      last = connection.Explain(status);
    }
  }
  if (typed) fmt::print("\n");
  return last;
}

}  // namespace t6::cli
