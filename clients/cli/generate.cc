#include "clients/cli/generate.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "clients/cli/interrupt.h"
#include "clients/cli/text.h"

namespace t6::cli {
namespace {

using Clock = std::chrono::steady_clock;

double MillisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

bool ReadDocument(const std::string& path, std::string& text, std::string& error) {
  std::error_code ignored;
  std::ifstream file;
  if (path != "-") file.open(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path, ignored)) {
    error = fmt::format("cannot read the document '{}': {}", path,
                        file ? "it is a folder" : std::strerror(errno));
    return false;
  }
  constexpr std::streamsize kMost = std::streamsize{16} << 20;  // no server takes a longer message
  text.resize(kMost + 1);
  std::istream& in = path == "-" ? std::cin : file;
  in.read(text.data(), kMost + 1);
  text.resize(static_cast<size_t>(in.gcount()));
  if (in.gcount() > kMost) {
    error = fmt::format("the document '{}' is larger than {} bytes", path, kMost);
    return false;
  }
  if (!IsUtf8(text)) {
    error = fmt::format("the document '{}' is not a UTF-8 text", path);
    return false;
  }
  // The line break that ends a text file is no part of the document.
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return true;
}

}  // namespace

absl::Status NewRequest(Connection& connection, const Options& options, v1::ChatCompletionRequest& request) {
  request.set_model(options.model);
  if (options.model.empty()) {
    Interruptible interruptible;
    const auto models = connection.client.Models({.stop = interruptible.token()});
    if (!models.ok()) return models.status();
    if (models->empty()) return absl::NotFoundError("the server has no model");
    request.set_model(models->front().id());
  }
  v1::SamplingOptions& sampling = *request.mutable_sampling();
  if (options.temperature) sampling.set_temperature(*options.temperature);
  if (options.max_tokens) sampling.set_max_tokens(*options.max_tokens);
  if (options.seed) sampling.set_seed(*options.seed);
  return absl::OkStatus();
}

bool SystemMessage(const Options& options, std::string& message, std::string& error) {
  if (options.document.empty()) {
    message = options.system.value_or("");
    return true;
  }
  std::string document;
  if (!ReadDocument(options.document, document, error)) return false;
  message = options.system.value_or(kDefaultSystem) + "\n\n" + document;
  return true;
}

absl::Status Generate(Connection& connection, const v1::ChatCompletionRequest& request, Answer& answer,
                      const std::function<void(std::string_view)>& piece) {
  auto start = Clock::now();
  Interruptible interruptible;
  client::ChatStream stream = connection.client.StreamChat(request, {.stop = interruptible.token()});
  bool first = true;
  for (const v1::ChatCompletionChunk& chunk : stream) {
    if (chunk.has_usage()) answer.usage = chunk.usage();
    if (!chunk.has_choice()) continue;
    if (chunk.choice().finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      answer.finish_reason = chunk.choice().finish_reason();
    }
    const std::string& text = client::TextOf(chunk);
    if (text.empty()) continue;
    if (first) answer.first_token_ms = MillisecondsSince(start);
    first = false;
    answer.text += text;
    piece(text);
  }
  answer.total_ms = MillisecondsSince(start);
  if (first) answer.first_token_ms = answer.total_ms;  // an empty answer
  return stream.status();
}

std::string Describe(const Answer& answer) {
  return fmt::format("{} of {} prompt tokens cached, {} new, first token {:.1f} ms, total {:.1f} ms",
                     answer.usage.cached_tokens(), answer.usage.prompt_tokens(),
                     answer.usage.completion_tokens(), answer.first_token_ms, answer.total_ms);
}

}  // namespace t6::cli
