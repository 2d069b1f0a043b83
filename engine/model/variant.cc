#include "engine/model/variant.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <vector>

namespace t6 {
namespace {

constexpr std::array<std::string_view, 15> kVariants = {"T6",
                                                        "T6_ropek",
                                                        "T6_partialrope",
                                                        "T6_partialrope_decay",
                                                        "T6_kvonly",
                                                        "T6_kvonly_ropek",
                                                        "T6_kvonly_partialrope",
                                                        "T6_kvonly_partialrope_decay",
                                                        "T6_linearattn",
                                                        "T6_linearattn_partialrope",
                                                        "T6_linearattn_partialrope_decay",
                                                        "llama-mha",
                                                        "llama-mqa",
                                                        "llama-gqa",
                                                        "llama-mla"};

// T6_ropek rotates Q and K after they are formed: the same function, the same cache.
bool Served(std::string_view name) { return name == "T6" || name == "T6_ropek"; }

// Case, '-' and '_' are no difference in a flag.
std::string Folded(std::string_view name) {
  std::string out(name);
  for (char& c : out) c = c == '-' ? '_' : static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return out;
}

std::string FirstWith(const std::vector<std::string>& names, std::string_view part) {
  const auto found = std::find_if(names.begin(), names.end(), [&](const std::string& name) {
    return name.find(part) != std::string::npos;
  });
  return found == names.end() ? "" : *found;
}

int64_t RowsOf(const TensorSource& tensors, const std::string& name) {
  const auto view = tensors.Find(name);
  return view.ok() && view->shape.size() == 2 ? view->shape[0] : 0;
}

// Separate c_q, c_k, c_v: as many KV rows as query rows is MHA, one head's is MQA, anything between GQA.
VariantGuess GuessGrouped(const TensorSource& tensors, const std::string& c_k, const ModelConfig& config) {
  std::string c_q = c_k;
  c_q.replace(c_q.find(".attn.c_k."), 10, ".attn.c_q.");
  const int64_t q = RowsOf(tensors, c_q), k = RowsOf(tensors, c_k);
  const bool grouped = config.group_size.value_or(1) > 1 || k < q;
  if (!grouped) return {"llama-mha", fmt::format("tensor \"{}\"", c_k)};
  const bool one = config.n_head && (config.group_size == config.n_head || k * *config.n_head == q);
  return {one ? "llama-mqa" : "llama-gqa", fmt::format("tensor \"{}\" of {} rows beside {}", c_k, k, q)};
}

}  // namespace

VariantGuess GuessVariant(const TensorSource& tensors, const ModelConfig& config) {
  const std::vector<std::string> names = tensors.Names();
  for (const char* part : {".attn.q_a_proj.", ".attn.kv_a_proj_with_mqa.", ".attn.kv_b_proj."}) {
    const std::string name = FirstWith(names, part);
    if (!name.empty()) return {"llama-mla", fmt::format("tensor \"{}\"", name)};
  }
  if (const std::string c_k = FirstWith(names, ".attn.c_k."); !c_k.empty())
    return GuessGrouped(tensors, c_k, config);
  if (config.q_lora_rank) return {"llama-mla", "the config key \"q_lora_rank\""};
  if (config.kv_lora_rank) return {"llama-mla", "the config key \"kv_lora_rank\""};
  if (config.group_size) {
    const bool one = config.group_size == config.n_head;
    return {one ? "llama-mqa" : "llama-gqa", "the config key \"group_size\""};
  }
  VariantGuess guess{"T6", ""};
  if (const std::string c_q = FirstWith(names, ".attn.c_qkv.c_q."); !c_q.empty()) {
    guess = {"T6_kvonly", fmt::format("tensor \"{}\"", c_q)};
  }
  if (config.rope_decay_base) {
    const bool factored = guess.name == "T6";
    return {guess.name + "_partialrope_decay",
            fmt::format("the config key \"rope_decay_base\"{}",
                        factored ? "; T6_linearattn_partialrope_decay looks the same" : "")};
  }
  if (config.rope_partial_factor)
    return {guess.name + "_partialrope", "the config key \"rope_partial_factor\""};
  return guess;
}

Status CheckVariant(std::string_view asked, const VariantGuess& guess) {
  if (asked.empty()) {
    if (Served(guess.name)) return absl::OkStatus();
    return Unimplemented("variant \"{}\" is recognised but not served yet (seen from {})", guess.name,
                         guess.reason);
  }
  const auto known = std::find_if(kVariants.begin(), kVariants.end(),
                                  [&](std::string_view v) { return Folded(v) == Folded(asked); });
  if (known == kVariants.end()) {
    return InvalidArgument("variant \"{}\" is unknown; known are {}", asked.substr(0, 64),
                           fmt::join(kVariants, ", "));
  }
  if (!Served(*known)) return Unimplemented("variant \"{}\" is recognised but not served yet", *known);
  if (Served(guess.name)) return absl::OkStatus();
  return InvalidArgument("variant \"{}\" was asked for, but the checkpoint is \"{}\" (seen from {})", *known,
                         guess.name, guess.reason);
}

}  // namespace t6
