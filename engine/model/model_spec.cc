#include "engine/model/model_spec.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "engine/model/model_config.h"
#include "engine/model/t6_shapes.h"
#include "engine/model/variant.h"

namespace t6 {
namespace {

constexpr size_t kMaxProblemsShown = 32;

// A size that config.json may give under a key, and where it stands.
struct SizeKey {
  const char* key;
  std::optional<int> ModelConfig::*config;
  int T6Sizes::*size;
};

constexpr SizeKey kSizeKeys[] = {
    {"vocab_size", &ModelConfig::vocab_size, &T6Sizes::vocab_size},
    {"n_layer", &ModelConfig::n_layer, &T6Sizes::n_layers},
    {"n_head", &ModelConfig::n_head, &T6Sizes::n_heads},
    {"head_dim", &ModelConfig::head_dim, &T6Sizes::head_dim},
    {"n_embd", &ModelConfig::n_embd, &T6Sizes::width},
    {"q_rank", &ModelConfig::q_rank, &T6Sizes::rank_q},
    {"rank", &ModelConfig::rank, &T6Sizes::rank_k},
    {"rank", &ModelConfig::rank, &T6Sizes::rank_v},
};

Status NameProblems(std::vector<std::string> problems) {
  const size_t n = problems.size();
  if (n > kMaxProblemsShown) {
    problems.resize(kMaxProblemsShown);
    problems.push_back(fmt::format("and {} more", n - kMaxProblemsShown));
  }
  return InvalidArgument("the tensors are not those of a T6 model: {}", fmt::join(problems, "; "));
}

// The sizes as config.json gives them, the rest from the shapes.
StatusOr<T6Sizes> SizesFromConfig(const ModelConfig& config, const std::optional<T6Sizes>& shapes) {
  T6Sizes sizes = shapes.value_or(T6Sizes{});
  for (const SizeKey& k : kSizeKeys) {
    if (config.*k.config) sizes.*k.size = *(config.*k.config);
    if (sizes.*k.size == 0) {
      return InvalidArgument("config.json has no \"{}\", and the tensors' shapes do not tell it", k.key);
    }
  }
  if (config.using_groupnorm) sizes.head_norm = *config.using_groupnorm;
  if (!shapes) sizes.mlp_width = OfficialMlpWidth(sizes.width);
  return sizes;
}

Status NameDisagreement(const ModelConfig& config, const T6Sizes& shapes) {
  std::vector<std::string> keys;
  for (const SizeKey& k : kSizeKeys) {
    const std::optional<int>& said = config.*k.config;
    if (!said || *said == shapes.*k.size) continue;
    std::string line =
        fmt::format("\"{}\" is {}, but the tensors' shapes say {}", k.key, *said, shapes.*k.size);
    if (keys.empty() || keys.back() != line) keys.push_back(std::move(line));  // one key gives R_K and R_V
  }
  if (config.using_groupnorm.value_or(shapes.head_norm) != shapes.head_norm) {
    keys.push_back(fmt::format("\"using_groupnorm\" is {}, but the tensors say {} (attn.subln.weight)",
                               *config.using_groupnorm, shapes.head_norm));
  }
  return InvalidArgument("config.json disagrees with the checkpoint: {}", fmt::join(keys, "; "));
}

// Every tensor agrees with every key, or the error says on which side the fault lies: where the shapes agree
// with each other it is a key's, else the tensors'.
StatusOr<T6Sizes> AgreeOnSizes(const TensorSource& tensors, const ModelConfig& config) {
  const std::optional<T6Sizes> shapes = SizesFromShapes(tensors);
  const bool consistent = shapes && CompareShapes(tensors, *shapes).empty();
  T6_ASSIGN_OR_RETURN(T6Sizes sizes, SizesFromConfig(config, shapes));
  if (consistent && sizes == *shapes) return sizes;
  if (consistent) return NameDisagreement(config, *shapes);
  // One wrong c_fc1 must not make the other matrices of every layer's MLP look wrong.
  sizes.mlp_width = OfficialMlpWidth(sizes.width);
  std::vector<std::string> problems = CompareShapes(tensors, sizes);
  if (shapes) {
    sizes.mlp_width = shapes->mlp_width;
    std::vector<std::string> other = CompareShapes(tensors, sizes);
    if (other.size() < problems.size()) problems = std::move(other);
  }
  return NameProblems(std::move(problems));
}

// An lm_head that is absent, shares the embedding's bytes or repeats them is tied.
bool HeadIsTied(const TensorSource& tensors) {
  const auto head = tensors.Find("lm_head.weight"), wte = tensors.Find("transformer.wte.weight");
  if (!head.ok() || !wte.ok() || head->data == wte->data) return true;
  return head->dtype == wte->dtype && std::memcmp(head->data, wte->data, wte->n_bytes()) == 0;
}

int64_t CountParameters(const TensorSource& tensors, bool tied_head) {
  int64_t n = 0;
  for (const std::string& name : tensors.Names()) {
    if (tied_head && name == "lm_head.weight") continue;
    if (const auto view = tensors.Find(name); view.ok()) n += view->n_elements();
  }
  return n;
}

}  // namespace

StatusOr<ModelSpec> ReadModelSpec(const std::filesystem::path& directory, const TensorSource& tensors,
                                  const ModelOptions& options) {
  T6_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(directory, options.overrides));
  T6_RETURN_IF_ERROR(CheckVariant(options.variant, GuessVariant(tensors, config)));
  T6_ASSIGN_OR_RETURN(const T6Sizes sizes, AgreeOnSizes(tensors, config));
  if (sizes.head_dim % 2 != 0)
    return InvalidArgument("\"head_dim\" is {}; rotation takes halves", sizes.head_dim);
  if (!config.block_size)
    return InvalidArgument("config.json has no \"block_size\", and nothing else tells it");
  ModelSpec spec;
  spec.variant = "T6";
  spec.vocab_size = sizes.vocab_size;
  spec.n_layers = sizes.n_layers;
  spec.width = sizes.width;
  spec.mlp_width = sizes.mlp_width;
  spec.block_size = *config.block_size;
  spec.attention.n_heads = sizes.n_heads;
  spec.attention.head_dim = sizes.head_dim;
  spec.attention.q.rank = sizes.rank_q;
  spec.attention.k.rank = sizes.rank_k;
  spec.attention.v.rank = sizes.rank_v;
  spec.attention.rotary_dim = sizes.head_dim;
  spec.attention.head_norm = sizes.head_norm;
  spec.generation = config.generation;
  for (const int32_t id : spec.generation.eos_token_ids) {
    if (id < spec.vocab_size) continue;
    return InvalidArgument("\"eos_token_id\" {} is beyond the vocabulary of {}", id, spec.vocab_size);
  }
  spec.tied_head = HeadIsTied(tensors);
  spec.n_parameters = CountParameters(tensors, spec.tied_head);
  return spec;
}

}  // namespace t6
