// What a checkpoint is: sizes derived from its shapes and held against config.json. Immutable once made.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/backend/attention_spec.h"
#include "engine/base/status.h"
#include "engine/checkpoint/tensor_source.h"

namespace t6 {

// Sampling defaults and stop ids of generation_config.json; absent where the file or its key is.
struct GenerationDefaults {
  std::optional<double> temperature, top_p;
  std::optional<int> top_k, max_new_tokens;
  std::vector<int32_t> eos_token_ids;  // generation_config.json, else config.json; may be empty
};

struct ModelSpec {
  std::string variant;  // "T6"
  int vocab_size = 0;   // rows of the embedding
  int n_layers = 0;
  int width = 0;       // D, n_embd
  int mlp_width = 0;   // hidden of the SwiGLU
  int block_size = 0;  // trained context
  AttentionSpec attention;
  float norm_eps = 1.1920929e-7f;
  float rope_base = 10000.0f;
  bool rope_bf16 = true;  // cos and sin are rounded to bfloat16
  bool tied_head = true;  // lm_head shares the embedding
  GenerationDefaults generation;
  int64_t n_parameters = 0;
};

struct ModelOptions {
  std::string variant;                           // --variant; empty: derive
  std::map<std::string, std::string> overrides;  // --model-override key=value, over config.json
};

// Reads config.json and generation_config.json of `directory`, derives the rest from the tensors' names and
// shapes, and checks each against the other. INVALID_ARGUMENT names a missing, surplus or misshapen tensor,
// or the key that disagrees; UNIMPLEMENTED names a variant that is not served yet.
StatusOr<ModelSpec> ReadModelSpec(const std::filesystem::path& directory, const TensorSource& tensors,
                                  const ModelOptions& options);

}  // namespace t6
