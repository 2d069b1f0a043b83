// One answer of the model, streamed.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "clients/cli/connection.h"
#include "clients/cli/options.h"

namespace t6::cli {

struct Answer {
  std::string text;
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  v1::Usage usage;
  double first_token_ms = 0;  // as this client saw it
  double total_ms = 0;
};

// The request that `options` ask for, without messages; the model's name comes from the server unless it was
// given.
absl::Status NewRequest(Connection& connection, const Options& options, v1::ChatCompletionRequest& request);

// `--system` and `--document` as one system message; `error` says what is wrong with the document.
bool SystemMessage(const Options& options, std::string& message, std::string& error);

// Calls `piece` with each new piece of text. CANCELLED after ctrl-C, with what had come until then in
// `answer`.
absl::Status Generate(Connection& connection, const v1::ChatCompletionRequest& request, Answer& answer,
                      const std::function<void(std::string_view)>& piece);

// "36 of 92 prompt tokens cached, 4 new, first token 8.1 ms, total 12.0 ms"
std::string Describe(const Answer& answer);

}  // namespace t6::cli
