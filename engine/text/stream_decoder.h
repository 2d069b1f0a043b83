// One request's token ids -> text pieces that never hold part of a character. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/base/status.h"
#include "engine/text/tokenizer.h"

namespace t6 {

class StreamDecoder {
 public:
  // `tokenizer` must outlive the decoder. The joined pieces equal Tokenizer::Decode(all ids,
  // skip_special_tokens).
  explicit StreamDecoder(const Tokenizer* tokenizer, bool skip_special_tokens = true);
  ~StreamDecoder();

  // The text that is certain after `id`; empty while a character is incomplete.
  StatusOr<std::string> Push(int32_t id);
  // What is left: an incomplete character comes out as U+FFFD.
  std::string Flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace t6
