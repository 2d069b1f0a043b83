// config.json and generation_config.json as typed, bounded values. Absent (or null) keys are empty: the
// official training script saves only what it was passed, and the tensors' shapes tell most of it
// (model_spec.h).
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "engine/base/status.h"
#include "engine/model/model_spec.h"

namespace t6 {

inline constexpr int kMaxLayers = 1024, kMaxHeads = 1024, kMaxHeadDim = 1024, kMaxRank = 64,
                     kMaxWidth = 1 << 16, kMaxVocab = 4 << 20, kMaxBlockSize = 16 << 20;

struct ModelConfig {
  std::optional<int> vocab_size, n_layer, n_head, head_dim, n_embd, rank, q_rank, block_size;
  std::optional<bool> using_groupnorm;
  // Keys that only other variants have.
  std::optional<double> rope_partial_factor, rope_decay_base;
  std::optional<int> group_size, q_lora_rank, kv_lora_rank;
  GenerationDefaults generation;
};

// `overrides` (key=value) stand above config.json's keys; "null" takes a key away. Errors name the file or
// the override, and the key.
StatusOr<ModelConfig> ReadModelConfig(const std::filesystem::path& directory,
                                      const std::map<std::string, std::string>& overrides);

}  // namespace t6
