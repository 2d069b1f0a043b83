#include "clients/cli/bench/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <unordered_set>
#include <utility>

#include "clients/cli/text.h"

namespace t6::cli {

std::string ContextKey(std::string_view text) {
  uint64_t hash = 0xCBF29CE484222325;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  return fmt::format("bench-{:016x}", hash);
}

DocumentPrompts::DocumentPrompts(std::string_view instruction, std::string_view document, int number)
    : system_(std::make_shared<std::string>(fmt::format("{}\n\n{}", instruction, document))),
      number_(number),
      context_(ContextKey(*system_)) {}

BenchPrompt DocumentPrompts::Ask(std::string_view question) const {
  return {.messages = {{"system", system_}, {"user", std::make_shared<std::string>(Trim(question))}},
          .document = number_,
          .context = context_};
}

Workload::Workload(std::vector<BenchPrompt> prompts, uint64_t seed)
    : prompts_(std::move(prompts)), random_(seed), order_(prompts_.size()), next_(order_.size()) {
  std::iota(order_.begin(), order_.end(), 0);
  std::unordered_set<int> documents;
  for (const BenchPrompt& prompt : prompts_) documents.insert(prompt.document);
  documents_ = static_cast<int>(documents.size());
}

const BenchPrompt& Workload::Next() {
  if (next_ == order_.size()) {
    // By hand: std::shuffle draws differently in each library.
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random_() % i]);
    next_ = 0;
  }
  return prompts_[order_[next_++]];
}

}  // namespace t6::cli
