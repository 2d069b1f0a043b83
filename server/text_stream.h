// One prompt's token events -> text. Pieces never hold part of a character nor of what may still become a
// stop string; tokens leave with the piece that completes their text. What comes out, joined, does not depend
// on how the engine's events were cut or merged. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "engine/event_stream.h"
#include "engine/text/stream_decoder.h"
#include "engine/text/tokenizer.h"
#include "server/stop_matcher.h"
#include "t6/v1/completions.pb.h"

namespace t6::server {

// What became certain. Deltas of one stream add up with Append.
struct TextDelta {
  std::string text;
  std::vector<int32_t> token_ids;  // of the output
  std::vector<v1::TokenLogprob>
      logprobs;  // with options.logprobs: of token_ids; with echo, the prompt's before them
  FinishReason finish = FinishReason::kNone;  // kStop or kLength in the last one
  std::optional<std::string> stop_string;     // with kStop: what ended the output, if the request named it
  std::optional<int32_t> stop_token;          // with kStop: or this token

  bool empty() const {
    return text.empty() && token_ids.empty() && logprobs.empty() && finish == FinishReason::kNone;
  }
  void Append(TextDelta&& next);
};

struct TextStreamOptions {
  std::vector<std::string> stop;  // not empty strings
  bool logprobs = false;
  bool echo = false;                       // the prompt is part of the output
  std::optional<std::string> prompt_text;  // the prompt as it was given, if it was text
};

class TextStream {
 public:
  // `tokenizer` may be null: then there is no text. It must outlive the stream.
  TextStream(const Tokenizer* tokenizer, std::vector<int32_t> prompt, TextStreamOptions options);

  // `event` is not an error. When the delta carries a stop_string, the engine is to be told (Engine::Finish),
  // and what it still sends is nothing to this stream.
  StatusOr<TextDelta> Consume(const TokenEvent& event);

  bool finished() const { return finished_; }
  int prompt_tokens() const { return static_cast<int>(prompt_.size()); }
  // Counted up to the one that completed a stop string.
  int completion_tokens() const { return completion_tokens_; }
  int cached_tokens() const { return cached_tokens_; }
  const std::vector<int32_t>& prompt() const { return prompt_; }

 private:
  // A token whose text is not all out; `end` is where it ends in the output's text.
  struct PendingToken {
    TokenOutput output;
    size_t end;
  };

  Status TakeToken(const TokenOutput& output, bool has_text, TextDelta* delta);
  Status TakePiece(const std::string& piece, TextDelta* delta);
  void Release(TextDelta* delta, bool all);
  Status Echo(TextDelta* delta);
  StatusOr<std::string> Decode(int32_t token);
  v1::TokenLogprob ToLogprob(const TokenOutput& output) const;

  const Tokenizer* const tokenizer_;
  const std::vector<int32_t> prompt_;
  const TextStreamOptions options_;
  std::optional<StreamDecoder> decoder_;
  StopMatcher stop_;
  std::vector<TokenOutput> prompt_scores_;
  std::deque<PendingToken> pending_;
  size_t decoded_ = 0;  // bytes of output text decoded
  size_t emitted_ = 0;  // and given out
  bool echoed_;
  bool finished_ = false;
  int completion_tokens_ = 0;
  int cached_tokens_ = 0;
};

}  // namespace t6::server
