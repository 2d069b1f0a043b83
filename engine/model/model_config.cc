#include "engine/model/model_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "engine/base/read_file.h"
#include "engine/checkpoint/bounded_json.h"
#include "engine/checkpoint/file_bytes.h"

namespace t6 {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr size_t kMaxEosIds = 64;

constexpr std::array<std::string_view, 15> kOverridable = {"vocab_size",      "n_layer",
                                                           "n_head",          "head_dim",
                                                           "n_embd",          "rank",
                                                           "q_rank",          "block_size",
                                                           "using_groupnorm", "rope_partial_factor",
                                                           "rope_decay_base", "group_size",
                                                           "q_lora_rank",     "kv_lora_rank",
                                                           "eos_token_id"};

StatusOr<json> ReadObject(const std::filesystem::path& path) {
  T6_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxConfigBytes));
  auto object = ParseBoundedJson(text);
  if (!object.ok()) return Annotate(object.status(), path.string());
  if (!object->is_object()) return InvalidArgument("{}: is no JSON object", path.string());
  return object;
}

// The key's value as a message may show it.
std::string Shown(const json& value) { return value.dump(-1, ' ', true).substr(0, 64); }

// Reads the keys of one object; the first error stays.
class Reader {
 public:
  explicit Reader(const json& object) : object_(object) {}

  void Int(const char* key, int64_t least, int64_t most, std::optional<int>& to) {
    const json* value = Get(key);
    if (value == nullptr) return;
    const bool fits =
        value->is_number_integer() && (!value->is_number_unsigned() || value->get<uint64_t>() <= INT64_MAX);
    if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most) {
      return Fail(key, fmt::format("a whole number from {} to {}", least, most));
    }
    to = value->get<int>();
  }

  void Number(const char* key, double least, double most, std::optional<double>& to) {
    const json* value = Get(key);
    if (value == nullptr) return;
    if (!value->is_number() || !(value->get<double>() >= least && value->get<double>() <= most)) {
      return Fail(key, fmt::format("a number from {} to {}", least, most));
    }
    to = value->get<double>();
  }

  void Bool(const char* key, std::optional<bool>& to) {
    const json* value = Get(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Fail(key, "true or false");
    to = value->get<bool>();
  }

  // A token id or a list of them.
  void Ids(const char* key, std::vector<int32_t>& to) {
    const json* value = Get(key);
    if (value == nullptr) return;
    const json list = value->is_array() ? *value : json::array({*value});
    if (list.size() > kMaxEosIds) return Fail(key, fmt::format("at most {} token ids", kMaxEosIds));
    for (const json& id : list) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxVocab)
        return Fail(key, "a token id or a list of them");
      to.push_back(id.get<int32_t>());
    }
  }

  const Status& status() const { return status_; }

 private:
  const json* Get(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  void Fail(const char* key, std::string_view expected) {
    if (status_.ok()) status_ = InvalidArgument("\"{}\" is {}, not {}", key, Shown(object_[key]), expected);
  }

  const json& object_;
  Status status_;
};

Status ApplyOverrides(const std::map<std::string, std::string>& overrides, json& config) {
  for (const auto& [key, text] : overrides) {
    if (std::find(kOverridable.begin(), kOverridable.end(), key) == kOverridable.end()) {
      return InvalidArgument("--model-override \"{}\" is no key of a model's config; known are {}", key,
                             fmt::join(kOverridable, ", "));
    }
    const auto value = ParseBoundedJson(text);
    if (!value.ok() || value->is_object() || value->is_string()) {
      return InvalidArgument("--model-override {}={}: the value is no number, true, false or null", key,
                             text.substr(0, 64));
    }
    config[key] = *value;
  }
  return absl::OkStatus();
}

void ReadSizes(Reader& r, ModelConfig& c) {
  r.Int("vocab_size", 1, kMaxVocab, c.vocab_size);
  r.Int("n_layer", 1, kMaxLayers, c.n_layer);
  r.Int("n_head", 1, kMaxHeads, c.n_head);
  r.Int("head_dim", 1, kMaxHeadDim, c.head_dim);
  r.Int("n_embd", 1, kMaxWidth, c.n_embd);
  r.Int("rank", 1, kMaxRank, c.rank);
  r.Int("q_rank", 1, kMaxRank, c.q_rank);
  r.Int("block_size", 1, kMaxBlockSize, c.block_size);
  r.Bool("using_groupnorm", c.using_groupnorm);
  r.Number("rope_partial_factor", 0, 1, c.rope_partial_factor);
  r.Number("rope_decay_base", 0, 1, c.rope_decay_base);
  r.Int("group_size", 1, kMaxHeads, c.group_size);
  r.Int("q_lora_rank", 1, kMaxWidth, c.q_lora_rank);
  r.Int("kv_lora_rank", 1, kMaxWidth, c.kv_lora_rank);
}

Status ReadGeneration(const std::filesystem::path& path, GenerationDefaults& out) {
  const auto object = ReadObject(path);
  if (absl::IsNotFound(object.status())) return absl::OkStatus();
  T6_RETURN_IF_ERROR(object.status());
  Reader r(*object);
  constexpr int kAny = std::numeric_limits<int32_t>::max();
  r.Number("temperature", 0, 100, out.temperature);
  r.Number("top_p", 0, 1, out.top_p);
  r.Int("top_k", -1, kAny, out.top_k);
  r.Int("max_new_tokens", 1, kAny, out.max_new_tokens);
  r.Ids("eos_token_id", out.eos_token_ids);
  if (out.top_k) out.top_k = std::max(*out.top_k, 0);  // -1 is another spelling of "all"
  return Annotate(r.status(), path.string());
}

}  // namespace

StatusOr<ModelConfig> ReadModelConfig(const std::filesystem::path& directory,
                                      const std::map<std::string, std::string>& overrides) {
  const std::filesystem::path path = directory / "config.json";
  T6_ASSIGN_OR_RETURN(json object, ReadObject(path));
  T6_RETURN_IF_ERROR(ApplyOverrides(overrides, object));
  ModelConfig config;
  Reader r(object);
  ReadSizes(r, config);
  std::vector<int32_t> eos;
  r.Ids("eos_token_id", eos);
  T6_RETURN_IF_ERROR(Annotate(r.status(), path.string()));
  T6_RETURN_IF_ERROR(ReadGeneration(directory / "generation_config.json", config.generation));
  if (config.generation.eos_token_ids.empty() || overrides.contains("eos_token_id")) {
    config.generation.eos_token_ids = eos;
  }
  return config;
}

}  // namespace t6
