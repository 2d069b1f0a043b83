#include "server/text_stream.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace t6::server {
namespace {

template <typename T>
void MoveAppend(std::vector<T>& from, std::vector<T>& to) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

// JSON has no infinity; a token that the model rules out shows as this, as OpenAI's API does.
constexpr float kLeastLogprob = -9999.0f;

}  // namespace

void TextDelta::Append(TextDelta&& next) {
  text += next.text;
  MoveAppend(next.token_ids, token_ids);
  MoveAppend(next.logprobs, logprobs);
  if (next.finish != FinishReason::kNone) {
    finish = next.finish;
    stop_string = std::move(next.stop_string);
    stop_token = next.stop_token;
  }
}

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<int32_t> prompt, TextStreamOptions options)
    : tokenizer_(tokenizer),
      prompt_(std::move(prompt)),
      options_(std::move(options)),
      stop_(options_.stop),
      echoed_(!options_.echo) {
  if (tokenizer_ != nullptr) decoder_.emplace(tokenizer_);
}

StatusOr<TextDelta> TextStream::Consume(const TokenEvent& event) {
  TextDelta delta;
  if (finished_) return delta;
  // The engine knows it for certain from the first token on.
  cached_tokens_ = std::max(cached_tokens_, event.cached_tokens);
  prompt_scores_.insert(prompt_scores_.end(), event.prompt_scores.begin(), event.prompt_scores.end());

  const bool ends = event.finish != FinishReason::kNone;
  const bool scored = options_.logprobs && prompt_scores_.size() + 1 >= prompt_.size();
  if (!echoed_ && (scored || !event.tokens.empty() || ends)) T6_RETURN_IF_ERROR(Echo(&delta));

  for (size_t i = 0; i < event.tokens.size() && !finished_; ++i) {
    const bool is_stop_token = event.finish == FinishReason::kStop && event.stop_token >= 0 &&
                               i + 1 == event.tokens.size() && event.tokens[i].token == event.stop_token;
    T6_RETURN_IF_ERROR(TakeToken(event.tokens[i], /*has_text=*/!is_stop_token, &delta));
  }
  if (ends && !finished_) {
    if (decoder_) T6_RETURN_IF_ERROR(TakePiece(decoder_->Flush(), &delta));
    if (!finished_) {
      stop_.Flush(&delta.text);
      finished_ = true;
      delta.finish = event.finish;
      if (event.finish == FinishReason::kStop && event.stop_token >= 0) delta.stop_token = event.stop_token;
    }
  }
  Release(&delta, /*all=*/finished_);
  return delta;
}

Status TextStream::TakeToken(const TokenOutput& output, bool has_text, TextDelta* delta) {
  ++completion_tokens_;
  std::string piece;
  if (has_text) {
    T6_ASSIGN_OR_RETURN(piece, Decode(output.token));
  }
  pending_.push_back({output, decoded_ + piece.size()});
  return TakePiece(piece, delta);
}

Status TextStream::TakePiece(const std::string& piece, TextDelta* delta) {
  if (piece.empty()) return absl::OkStatus();
  decoded_ += piece.size();
  const size_t before = delta->text.size();
  stop_.Push(piece, &delta->text);
  emitted_ += delta->text.size() - before;
  if (stop_.match().has_value()) {
    finished_ = true;
    delta->finish = FinishReason::kStop;
    delta->stop_string = stop_.match();
  }
  return absl::OkStatus();
}

void TextStream::Release(TextDelta* delta, bool all) {
  while (!pending_.empty() && (all || pending_.front().end <= emitted_)) {
    delta->token_ids.push_back(pending_.front().output.token);
    if (options_.logprobs) delta->logprobs.push_back(ToLogprob(pending_.front().output));
    pending_.pop_front();
  }
}

Status TextStream::Echo(TextDelta* delta) {
  echoed_ = true;
  std::string text;
  for (const int32_t token : prompt_) {
    // Goes through the same decoder as the output, so that the text across the border is right.
    T6_ASSIGN_OR_RETURN(const std::string piece, Decode(token));
    text += piece;
  }
  delta->text += options_.prompt_text.value_or(text);
  if (!options_.logprobs) return absl::OkStatus();
  for (size_t i = 0; i < prompt_.size(); ++i) {
    TokenOutput output;
    if (i > 0 && i <= prompt_scores_.size()) output = prompt_scores_[i - 1];
    output.token = prompt_[i];
    delta->logprobs.push_back(ToLogprob(output));
    if (i == 0 || i > prompt_scores_.size()) delta->logprobs.back().clear_logprob();
  }
  return absl::OkStatus();
}

StatusOr<std::string> TextStream::Decode(int32_t token) {
  // A model's table may have rows that no text belongs to; a prompt may name them.
  if (!decoder_ || token < 0 || token >= tokenizer_->n_tokens()) return std::string();
  return decoder_->Push(token);
}

v1::TokenLogprob TextStream::ToLogprob(const TokenOutput& output) const {
  const auto name = [this](int32_t token, auto* message) {
    message->set_token_id(token);
    if (tokenizer_ != nullptr && token >= 0 && token < tokenizer_->n_tokens()) {
      message->set_token(tokenizer_->TokenText(token));
      message->set_bytes(tokenizer_->TokenBytes(token));
    } else {
      message->set_token(fmt::format("token_id:{}", token));
    }
  };
  v1::TokenLogprob logprob;
  name(output.token, &logprob);
  if (!std::isnan(output.logprob)) logprob.set_logprob(std::max(output.logprob, kLeastLogprob));
  for (const TokenScore& score : output.top) {
    v1::TopLogprob* top = logprob.add_top();
    name(score.token, top);
    top->set_logprob(std::max(score.logprob, kLeastLogprob));
  }
  return logprob;
}

}  // namespace t6::server
