// A Hugging Face tokenizer.json, through one small Rust library (engine/text/ffi). Immutable, thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "engine/base/status.h"

namespace t6 {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Reads tokenizer.json, and tokenizer_config.json where it is there. NOT_FOUND: the folder has no
  // tokenizer.json.
  static StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& directory);

  // Special strings in `text` stay text. add_special_tokens: what the tokenizer's post-processor adds (bos,
  // ...).
  virtual StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special_tokens) const = 0;
  // Whole text of `ids`; special tokens are left out. INVALID_ARGUMENT names an id that has no entry.
  virtual StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const = 0;
  // Ids below this have text; a model's table may be larger.
  virtual int n_tokens() const = 0;
  virtual std::optional<int32_t> eos_token_id() const = 0;
  // The text of one token as the API's `token` field shows it: valid UTF-8, U+FFFD for part of a character.
  virtual std::string TokenText(int32_t id) const = 0;
  // The bytes that one token stands for (a byte-level token may be part of a character).
  virtual std::string TokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  // What a StreamDecoder must know. "<0x41>" of a byte-fallback vocabulary: decoded together with its
  // neighbours.
  virtual bool IsByteToken(int32_t id) const { return false; }
  // A text with more bytes than this for each token of a context cannot fit it, whatever it says.
  virtual size_t most_bytes_per_token() const { return 256; }  // a guess for vocabularies that swallow text
  // The text of ids is the UTF-8 of their TokenBytes, one after the other.
  virtual bool DecodesByBytes() const { return false; }
};

}  // namespace t6
