// Any bytes as tokenizer.json: refused with a message, or a tokenizer whose ids decode to valid UTF-8.
#include "engine/base/check.h"
#include "engine/base/read_file.h"
#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/temporary_folder.h"

std::string FuzzSeed() {
  return t6::ReadTextFile(T6_SOURCE_DIR "/tests/goldens/variants/T6/tokenizer.json", 1 << 20).value();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const t6::testing::TemporaryFolder folder;
  folder.Write("tokenizer.json", std::string(reinterpret_cast<const char*>(data), size));
  const auto tokenizer = t6::Tokenizer::Load(folder.path());
  if (!tokenizer.ok()) {
    T6_CHECK(!tokenizer.status().message().empty());
    return 0;
  }
  const auto ids = (*tokenizer)
                       ->Encode(
                           "Gr\xC3\xBC\xC3\x9F"
                           "e <|end|> 1931\n",
                           /*add_special_tokens=*/true);
  if (!ids.ok()) return 0;
  for (const int32_t id : *ids) {
    T6_CHECK(id >= 0 && id < (*tokenizer)->n_tokens(), "{} of {}", id, (*tokenizer)->n_tokens());
    T6_CHECK(t6::FirstInvalidUtf8((*tokenizer)->TokenText(id)) == std::string_view::npos);
  }
  const auto text = (*tokenizer)->Decode(*ids, /*skip_special_tokens=*/false);
  T6_CHECK(!text.ok() || t6::FirstInvalidUtf8(*text) == std::string_view::npos);
  return 0;
}
