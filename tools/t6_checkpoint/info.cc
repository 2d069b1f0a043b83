#include <fmt/ranges.h>

#include <filesystem>
#include <map>
#include <set>

#include "engine/checkpoint/tensor_source.h"
#include "engine/model/model_spec.h"
#include "tools/t6_checkpoint/commands.h"

namespace t6 {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kDetails = R"(
Reads DIR's weights (model.safetensors, pytorch_model.bin, or shards of either), derives the model's sizes from the
tensors' shapes and holds them against config.json. Ends with status 1 when they do not agree, or when the
variant is not served; what could be read is printed all the same.
)";

void Line(std::string_view key, std::string_view text) { fmt::print("{:<12} {}\n", key, text); }

Status PrintTensors(const TensorSource& tensors, bool each) {
  std::map<DType, size_t> types;
  std::set<const void*> counted;  // tied tensors share their bytes
  uint64_t bytes = 0;
  size_t n = 0;
  for (const std::string& name : tensors.Names()) {
    T6_ASSIGN_OR_RETURN(const TensorView view, tensors.Find(name));
    if (each) fmt::print("  {:<48} {:<5} {}\n", name, NameOf(view.dtype), view.ShapeString());
    ++types[view.dtype];
    ++n;
    if (counted.insert(view.data).second) bytes += view.n_bytes();
  }
  std::string kinds;
  for (const auto& [type, count] : types)
    kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", count, NameOf(type));
  Line("tensors", fmt::format("{} ({}), {}", n, kinds, ShowBytes(bytes)));
  return absl::OkStatus();
}

void PrintFiles(const fs::path& directory) {
  std::vector<std::string> beside, absent;
  for (const char* name :
       {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
    std::error_code error;
    (fs::exists(directory / name, error) ? beside : absent).push_back(name);
  }
  Line("files", fmt::format("{}", fmt::join(beside, ", ")));
  if (!absent.empty()) Line("absent", fmt::format("{}", fmt::join(absent, ", ")));
}

void PrintSpec(const ModelSpec& spec) {
  const AttentionSpec& a = spec.attention;
  Line("variant", "T6, or T6_ropek: the same function, the same cache");
  Line("sizes", fmt::format("{} layers, {} heads of {}, width {}, SwiGLU {}, vocabulary {}", spec.n_layers,
                            a.n_heads, a.head_dim, spec.width, spec.mlp_width, spec.vocab_size));
  Line("ranks", fmt::format("R_Q {}, R_K {}, R_V {}{}", a.q.rank, a.k.rank, a.v.rank,
                            a.head_norm ? ", with groupnorm" : ""));
  Line("parameters", fmt::format("{:.2f} M, lm_head {}", static_cast<double>(spec.n_parameters) / 1e6,
                                 spec.tied_head ? "tied to the embedding" : "of its own"));
  Line("context", fmt::format("{} tokens", spec.block_size));
  const int cached = a.k_elements() + a.v_elements(), whole = 2 * a.n_heads * a.head_dim;
  Line("cache",
       fmt::format("{} numbers per token and layer, {} per token in bf16 (keys and values whole: {:.1f} x)",
                   cached, ShowBytes(uint64_t{2} * static_cast<uint64_t>(cached * spec.n_layers)),
                   static_cast<double>(whole) / cached));
  if (spec.generation.eos_token_ids.empty()) {
    Line("stop ids",
         "none in generation_config.json or config.json (the tokenizer's eos_token, or --eos-id)");
  } else {
    Line("stop ids", fmt::format("{}", fmt::join(spec.generation.eos_token_ids, ", ")));
  }
  fmt::print(
      "\nWhat the files cannot tell: the training script saves only what it was passed, so a checkpoint with "
      "partial\n"
      "rotation, decay or linear attention has the same tensors and may have the same config.json as plain "
      "T6.\n"
      "If this one is such a checkpoint, say so with --variant.\n");
}

StatusOr<ModelOptions> Options(const Arguments& args) {
  ModelOptions options;
  options.variant = args.Text("--variant", "");
  for (const std::string& text : args.All("--model-override")) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) {
      return MakeStatus(absl::StatusCode::kOutOfRange, "--model-override is \"{}\", not KEY=VALUE", text);
    }
    options.overrides[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return options;
}

Status Info(const Arguments& args) {
  const fs::path directory = args.positional(0);
  T6_ASSIGN_OR_RETURN(const ModelOptions options, Options(args));
  T6_ASSIGN_OR_RETURN(const std::unique_ptr<TensorSource> tensors, OpenCheckpoint(directory));
  Line("checkpoint", directory.string());
  PrintFiles(directory);
  T6_RETURN_IF_ERROR(PrintTensors(*tensors, args.Has("--tensors")));
  T6_ASSIGN_OR_RETURN(const ModelSpec spec, ReadModelSpec(directory, *tensors, options));
  PrintSpec(spec);
  return absl::OkStatus();
}

}  // namespace

Command InfoCommand() {
  return {"info",
          "DIR",
          "What is in a checkpoint, and whether it can be served.",
          kDetails,
          1,
          {{"--tensors", "", "one line per tensor: name, type, shape"},
           {"--variant", "NAME", "what the training code was, where the files cannot tell"},
           {"--model-override", "KEY=VALUE", "stands above that key of config.json; may be repeated"}},
          Info};
}

}  // namespace t6
