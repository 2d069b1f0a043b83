// The one Tokenizer there is, as its own room sees it: chat templates need to say where special tokens stand.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/text/ffi/t6_text.h"
#include "engine/text/special_marks.h"
#include "engine/text/tokenizer.h"

namespace t6 {

class HfTokenizer final : public Tokenizer {
 public:
  // `json`: the text of tokenizer.json; `eos_token`: its text, empty for none.
  static StatusOr<std::unique_ptr<HfTokenizer>> Parse(std::string_view json, std::string_view eos_token);

  StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special_tokens) const override;
  // Special tokens at `cuts` only, which must be ascending and disjoint. What the post-processor adds is left
  // out.
  StatusOr<std::vector<int32_t>> EncodeWithCuts(std::string_view text,
                                                absl::Span<const SpecialCut> cuts) const;
  StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const override;
  int n_tokens() const override { return static_cast<int>(flags_.size()); }
  std::optional<int32_t> eos_token_id() const override { return eos_token_id_; }
  std::string TokenText(int32_t id) const override;
  std::string TokenBytes(int32_t id) const override;
  bool IsSpecial(int32_t id) const override { return Has(id, T6_TOKEN_SPECIAL); }
  bool IsByteToken(int32_t id) const override { return Has(id, T6_TOKEN_BYTE); }
  size_t most_bytes_per_token() const override;
  bool DecodesByBytes() const override { return byte_level_; }
  const SpecialStrings& special_strings() const { return *special_strings_; }

 private:
  struct Free {
    void operator()(t6_tokenizer* handle) const { t6_tokenizer_free(handle); }
  };

  HfTokenizer() = default;
  bool Has(int32_t id, int flag) const { return id >= 0 && id < n_tokens() && (flags_[id] & flag) != 0; }
  StatusOr<std::vector<int32_t>> EncodeText(std::string_view text, absl::Span<const SpecialCut> cuts,
                                            bool add_special_tokens) const;

  std::unique_ptr<t6_tokenizer, Free> handle_;
  std::string flags_;  // T6_TOKEN_* of each id
  std::unique_ptr<SpecialStrings> special_strings_;
  std::optional<int32_t> eos_token_id_;
  bool byte_level_ = false;
  size_t longest_token_ = 1;  // in bytes
};

}  // namespace t6
