// The prompts of a benchmark and the order in which they are asked: every one once in random order, then
// again in another. Same seed, same sequence. Owns the texts; not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace t6::cli {

// A document's text is shared by its questions.
struct BenchMessage {
  std::string role;
  std::shared_ptr<const std::string> content;
};

struct BenchPrompt {
  std::vector<BenchMessage> messages;
  int document = 0;     // prompts with the same number begin alike
  std::string context;  // what x-t6-context says of it
};

// The prompt for a question about a document: instruction, empty line, document; then the stripped question.
class DocumentPrompts {
 public:
  DocumentPrompts(std::string_view instruction, std::string_view document, int number);
  BenchPrompt Ask(std::string_view question) const;

 private:
  const std::shared_ptr<const std::string> system_;
  const int number_;
  const std::string context_;
};

// For x-t6-context: depends on the text alone, so that every client says the same. Visible ASCII.
std::string ContextKey(std::string_view text);

class Workload {
 public:
  // `prompts` is not empty.
  Workload(std::vector<BenchPrompt> prompts, uint64_t seed);
  const BenchPrompt& Next();
  size_t size() const { return prompts_.size(); }
  int documents() const { return documents_; }

 private:
  const std::vector<BenchPrompt> prompts_;
  std::mt19937_64 random_;
  std::vector<uint32_t> order_;
  size_t next_ = 0;
  int documents_ = 0;
};

}  // namespace t6::cli
