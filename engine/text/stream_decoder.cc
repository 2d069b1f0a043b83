#include "engine/text/stream_decoder.h"

#include <algorithm>
#include <vector>

#include "engine/text/utf8.h"

namespace t6 {
namespace {

// Decoders look at most a few tokens back: whether a token is the first, how many spaces to drop at the
// beginning.
constexpr size_t kKept = 4;
// Without byte tokens, a text that still ends in U+FFFD after so many tokens really has one.
constexpr size_t kMaxWaiting = 8;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

}  // namespace

// Two ways. A byte-level tokenizer's text is its tokens' bytes one after the other. Any other decoder is
// asked for the text of a window, some tokens whose text is out already and those that wait; what comes new
// is what the latter add.
struct StreamDecoder::Impl {
  Impl(const Tokenizer* tokenizer, bool skip_special) : tokenizer(tokenizer), skip_special(skip_special) {}

  const Tokenizer* const tokenizer;
  const bool skip_special;

  Utf8Stream bytes;

  std::vector<int32_t> window;
  size_t n_out = 0;          // tokens of the window whose text is out
  std::string out;           // that text
  bool in_byte_run = false;  // the last token is one of a run of byte tokens, which are decoded together

  StatusOr<std::string> PushText(int32_t id) {
    window.push_back(id);
    in_byte_run = tokenizer->IsByteToken(id);
    // Only the end of a run tells whether its bytes were characters at all.
    if (in_byte_run) return std::string();
    return Take(window.size() - n_out >= kMaxWaiting);
  }

  // What the waiting tokens add to the text; nothing while the last character may be incomplete, unless
  // `all`.
  StatusOr<std::string> Take(bool all) {
    auto text = tokenizer->Decode(window, skip_special);
    if (!text.ok()) {
      window.pop_back();
      return text.status();
    }
    if (!all && text->ends_with(kReplacement)) return std::string();
    const bool grows = text->compare(0, out.size(), out) == 0;
    std::string piece = grows ? text->substr(out.size()) : std::string();
    window.erase(window.begin(), window.end() - static_cast<ptrdiff_t>(std::min(kKept, window.size())));
    n_out = window.size();
    T6_ASSIGN_OR_RETURN(out, tokenizer->Decode(window, skip_special));
    return piece;
  }
};

StreamDecoder::StreamDecoder(const Tokenizer* tokenizer, bool skip_special_tokens)
    : impl_(new Impl(tokenizer, skip_special_tokens)) {}

StreamDecoder::~StreamDecoder() = default;

StatusOr<std::string> StreamDecoder::Push(int32_t id) {
  const Tokenizer& tokenizer = *impl_->tokenizer;
  if (impl_->skip_special && tokenizer.IsSpecial(id)) return std::string();
  if (!tokenizer.DecodesByBytes()) return impl_->PushText(id);
  std::string bytes = tokenizer.TokenBytes(id);
  if (bytes.empty())
    T6_RETURN_IF_ERROR(tokenizer.Decode({&id, 1}, false).status());  // names an id without entry
  return impl_->bytes.Push(bytes);
}

std::string StreamDecoder::Flush() {
  std::string rest = impl_->bytes.Flush();
  if (impl_->window.size() > impl_->n_out) rest += impl_->Take(/*all=*/true).value_or("");
  return rest;
}

}  // namespace t6
