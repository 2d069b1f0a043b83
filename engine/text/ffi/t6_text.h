// The C interface of the Rust library behind engine/text: Hugging Face `tokenizers` and `minijinja`.
// Lengths are explicit, nothing is null-terminated. Every entry catches panics, bounds its input and returns
// a code; `out` then holds the result or the error's text, and is always to be given to t6_text_free (which
// takes empty ones). Handles are immutable: any number of threads may use one at once.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct t6_tokenizer t6_tokenizer;
typedef struct t6_template t6_template;

typedef struct {
  const uint8_t* data;
  size_t size;
} t6_text_slice;

typedef struct {
  uint8_t* data;  // owned by the library
  size_t size;
} t6_text_buffer;

enum { T6_TEXT_OK = 0, T6_TEXT_INVALID = 1, T6_TEXT_PANIC = 2 };

// Bits of t6_tokenizer_flags.
enum {
  T6_TOKEN_PRESENT = 1,  // the id has an entry
  T6_TOKEN_SPECIAL = 2,
  T6_TOKEN_BYTE = 4  // "<0x41>" of a byte-fallback vocabulary: stands for one byte
};

// Bytes [begin, end) of a text are the special token `id`, whose content they must be.
typedef struct {
  size_t begin;
  size_t end;
  int32_t id;
} t6_text_cut;

void t6_text_free(t6_text_buffer buffer);

// `json`: the text of tokenizer.json.
int t6_tokenizer_new(t6_text_slice json, t6_tokenizer** handle, t6_text_buffer* out);
void t6_tokenizer_free(t6_tokenizer* handle);
// out: JSON {"byte_level": bool, "special": [[id, content], ...]}.
int t6_tokenizer_describe(const t6_tokenizer* handle, t6_text_buffer* out);
// out: one byte of T6_TOKEN_* bits for each id.
int t6_tokenizer_flags(const t6_tokenizer* handle, t6_text_buffer* out);
// The id whose content is `content`, or -1.
int32_t t6_tokenizer_id(const t6_tokenizer* handle, t6_text_slice content);
// out: int32 ids. Special tokens come from `cuts` (ascending, disjoint) and from the post-processor when
// `add_special`, never from the rest of the text.
int t6_tokenizer_encode(const t6_tokenizer* handle, t6_text_slice text, const t6_text_cut* cuts,
                        size_t n_cuts, int add_special, t6_text_buffer* out);
int t6_tokenizer_decode(const t6_tokenizer* handle, const int32_t* ids, size_t n_ids, int skip_special,
                        t6_text_buffer* out);
// out: the bytes that `id` stands for inside a text.
int t6_tokenizer_token_bytes(const t6_tokenizer* handle, int32_t id, t6_text_buffer* out);

// `globals`: JSON object of the variables that every rendering sees (bos_token, ...).
int t6_template_new(t6_text_slice source, t6_text_slice globals, t6_template** handle, t6_text_buffer* out);
void t6_template_free(t6_template* handle);
// `variables`: JSON object (messages, add_generation_prompt, ...). out: UTF-8 text.
int t6_template_render(const t6_template* handle, t6_text_slice variables, t6_text_buffer* out);

#ifdef __cplusplus
}
#endif
