#include "engine/text/tokenizer.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/base/read_file.h"
#include "engine/text/ffi/ffi_call.h"
#include "engine/text/hf_tokenizer.h"
#include "engine/text/tokenizer_config.h"
#include "engine/text/utf8.h"

namespace t6 {
namespace {

using text_ffi::Call;
using text_ffi::Slice;

constexpr size_t kMaxTokenizerJson = 256 << 20;
// SpecialCut goes to the library as it is.
static_assert(sizeof(SpecialCut) == sizeof(t6_text_cut) &&
              offsetof(SpecialCut, end) == offsetof(t6_text_cut, end) &&
              offsetof(SpecialCut, id) == offsetof(t6_text_cut, id));

}  // namespace

StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::filesystem::path& directory) {
  const auto file = directory / "tokenizer.json";
  T6_ASSIGN_OR_RETURN(const std::string json, ReadTextFile(file, kMaxTokenizerJson));
  T6_ASSIGN_OR_RETURN(TokenizerConfig config, ReadTokenizerConfig(directory));
  auto tokenizer = HfTokenizer::Parse(json, config.special_tokens["eos_token"]);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), file.string());
  return *std::move(tokenizer);
}

StatusOr<std::unique_ptr<HfTokenizer>> HfTokenizer::Parse(std::string_view json, std::string_view eos_token) {
  std::unique_ptr<HfTokenizer> tokenizer(new HfTokenizer);
  t6_tokenizer* handle = nullptr;
  T6_RETURN_IF_ERROR(
      Call([&](t6_text_buffer* out) { return t6_tokenizer_new(Slice(json), &handle, out); }).status());
  tokenizer->handle_.reset(handle);
  T6_ASSIGN_OR_RETURN(tokenizer->flags_,
                      Call([&](t6_text_buffer* out) { return t6_tokenizer_flags(handle, out); }));
  T6_ASSIGN_OR_RETURN(const std::string text,
                      Call([&](t6_text_buffer* out) { return t6_tokenizer_describe(handle, out); }));
  const auto description = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (description.is_discarded()) return Internal("the text library's description is no JSON");
  tokenizer->byte_level_ = description["byte_level"].get<bool>();
  tokenizer->special_strings_ = std::make_unique<SpecialStrings>(
      description["special"].get<std::vector<std::pair<int32_t, std::string>>>());
  for (int32_t id = 0; id < tokenizer->n_tokens(); ++id) {
    tokenizer->longest_token_ = std::max(tokenizer->longest_token_, tokenizer->TokenBytes(id).size());
  }
  if (!eos_token.empty()) {
    const int32_t id = t6_tokenizer_id(handle, Slice(eos_token));
    if (id >= 0) tokenizer->eos_token_id_ = id;
  }
  return tokenizer;
}

size_t HfTokenizer::most_bytes_per_token() const {
  // Byte-level tokens together are the text, but for a normaliser before them: NFC makes three bytes one at
  // most.
  constexpr size_t kNormalised = 3;
  return byte_level_ ? kNormalised * longest_token_ : Tokenizer::most_bytes_per_token();
}

StatusOr<std::vector<int32_t>> HfTokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  return EncodeText(text, {}, add_special_tokens);
}

StatusOr<std::vector<int32_t>> HfTokenizer::EncodeWithCuts(std::string_view text,
                                                           absl::Span<const SpecialCut> cuts) const {
  return EncodeText(text, cuts, /*add_special_tokens=*/false);
}

StatusOr<std::vector<int32_t>> HfTokenizer::EncodeText(std::string_view text,
                                                       absl::Span<const SpecialCut> cuts,
                                                       bool add_special_tokens) const {
  T6_ASSIGN_OR_RETURN(const std::string bytes, Call([&](t6_text_buffer* out) {
                        return t6_tokenizer_encode(handle_.get(), Slice(text),
                                                   reinterpret_cast<const t6_text_cut*>(cuts.data()),
                                                   cuts.size(), add_special_tokens, out);
                      }));
  std::vector<int32_t> ids(bytes.size() / sizeof(int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(int32_t));
  return ids;
}

StatusOr<std::string> HfTokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  return Call([&](t6_text_buffer* out) {
    return t6_tokenizer_decode(handle_.get(), ids.data(), ids.size(), skip_special_tokens, out);
  });
}

std::string HfTokenizer::TokenText(int32_t id) const {
  Utf8Stream stream;
  std::string text = stream.Push(TokenBytes(id));
  return text + stream.Flush();
}

std::string HfTokenizer::TokenBytes(int32_t id) const {
  return Call([&](t6_text_buffer* out) { return t6_tokenizer_token_bytes(handle_.get(), id, out); })
      .value_or("");
}

}  // namespace t6
