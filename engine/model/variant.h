// The families of the official repository by name, and which of them a checkpoint is: from its tensors' names
// and shapes and from config.json's keys. What neither tells (partial rotation, decay, linear attention when
// the training script saved no key for it) only --variant can.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/checkpoint/tensor_source.h"
#include "engine/model/model_config.h"

namespace t6 {

struct VariantGuess {
  std::string name;    // "T6", "T6_kvonly", "llama-gqa", ...
  std::string reason;  // what tells: `tensor "..."`, `the config key "..."`; empty for plain T6
};

VariantGuess GuessVariant(const TensorSource& tensors, const ModelConfig& config);

// OK when the checkpoint is of a variant that is served, under the name `asked` (--variant; empty: whatever
// it is). UNIMPLEMENTED names another variant; INVALID_ARGUMENT an unknown name, or one that the checkpoint
// contradicts.
Status CheckVariant(std::string_view asked, const VariantGuess& guess);

}  // namespace t6
