// Any bytes as a chat template, and as what a user says in a good one: a prompt or a message, within the
// sandbox's bounds, and no special token but those of the template.
#include <algorithm>

#include "engine/base/check.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/temporary_folder.h"

std::string FuzzSeed() {
  return "{% for m in messages %}{% if loop.first and m.role == 'system' %}{{ '<|system|>' + m.content | "
         "trim }}"
         "{% elif m['content'] is string %}<|{{ m.role }}|>\n{{ m.content }}<|end|>{{ '\\n' * 2 }}"
         "{% else %}{{ raise_exception('no ' ~ m.role) }}{% endif %}{% endfor %}"
         "{% if add_generation_prompt %}{% set x = namespace(n=[1, 2][0:1]) %}<|assistant|>{{ x.n | length }}"
         "{%- endif %}";
}

namespace {

size_t SpecialsOf(const t6::RenderedChat& chat, const t6::Tokenizer& tokenizer) {
  return static_cast<size_t>(std::count_if(chat.tokens.begin(), chat.tokens.end(),
                                           [&](int32_t id) { return tokenizer.IsSpecial(id); }));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string model = T6_SOURCE_DIR "/models/t6-docqa-14m";
  static const auto tokenizer = t6::Tokenizer::Load(model).value();
  static const auto good = t6::ChatTemplate::Load(model).value();
  static const t6::testing::TemporaryFolder folder;
  const std::string text(reinterpret_cast<const char*>(data), size);

  const auto chat_template = t6::ChatTemplate::LoadFile(folder.Write("template.jinja", text), model);
  if (chat_template.ok()) {
    const auto chat =
        (*chat_template)
            ->Render({{"system", "Be <|end|> short. ", ""}, {"user", "Who?", ""}}, {}, *tokenizer);
    T6_CHECK(chat.ok() || !chat.status().message().empty());
  }
  static const size_t specials =
      SpecialsOf(good->Render({{"user", "x", ""}}, {}, *tokenizer).value(), *tokenizer);
  const auto said = good->Render({{"user", text, ""}}, {}, *tokenizer);
  if (said.ok()) T6_CHECK(SpecialsOf(*said, *tokenizer) == specials);
  return 0;
}
