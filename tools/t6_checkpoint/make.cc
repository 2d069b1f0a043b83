#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/model/model_config.h"
#include "engine/model/t6_shapes.h"
#include "tools/t6_checkpoint/checkpoint_writer.h"
#include "tools/t6_checkpoint/commands.h"

namespace t6 {
namespace {

constexpr std::string_view kDetails = R"(
Writes a T6 checkpoint of random weights (mean 0, deviation 0.02; the same for the same flags) to the folder DST, for
benchmarks and tests. It has no tokenizer. The presets small, medium, large and xl are the T6 models of the TPA paper;
docqa has the sizes of the checkpoint that ships. Other flags change a preset's sizes.
)";

struct Preset {
  std::string_view name;
  int layers, heads, head_dim, width, rank_q, rank, vocab, context;
  DType dtype;
};

constexpr std::array<Preset, 6> kPresets = {{
    {"tiny", 2, 5, 16, 64, 3, 2, 259, 512, DType::kF32},
    {"docqa", 6, 13, 64, 384, 6, 2, 8192, 2048, DType::kBF16},
    {"small", 12, 34, 64, 768, 6, 2, 50304, 1024, DType::kBF16},
    {"medium", 24, 47, 64, 1024, 6, 2, 50304, 1024, DType::kBF16},
    {"large", 36, 61, 64, 1280, 6, 2, 50304, 1024, DType::kBF16},
    {"xl", 48, 78, 64, 1600, 6, 2, 50304, 1024, DType::kBF16},
}};

struct Plan {
  T6Sizes sizes;
  int context = 0;
  DType dtype = DType::kBF16;
  uint64_t seed = 0;
};

StatusOr<DType> ReadDType(const Arguments& args, DType otherwise) {
  if (!args.Has("--dtype")) return otherwise;
  const StatusOr<std::string> name = args.Choice("--dtype", {"bf16", "f32"});
  if (!name.ok()) return name.status();
  return *name == NameOf(DType::kBF16) ? DType::kBF16 : DType::kF32;
}

StatusOr<Plan> ReadPlan(const Arguments& args) {
  std::vector<std::string_view> names;
  for (const Preset& p : kPresets) names.push_back(p.name);
  T6_ASSIGN_OR_RETURN(const std::string name, args.Choice("--preset", names));
  const Preset& preset =
      *std::find_if(kPresets.begin(), kPresets.end(), [&](auto& p) { return p.name == name; });
  Plan plan;
  T6Sizes& s = plan.sizes;
  const struct {
    std::string_view flag;
    int preset, least, most;
    int* to;
  } numbers[] = {{"--layers", preset.layers, 1, kMaxLayers, &s.n_layers},
                 {"--heads", preset.heads, 1, kMaxHeads, &s.n_heads},
                 {"--head-dim", preset.head_dim, 2, kMaxHeadDim, &s.head_dim},
                 {"--width", preset.width, 1, kMaxWidth, &s.width},
                 {"--q-rank", preset.rank_q, 1, kMaxRank, &s.rank_q},
                 {"--rank", preset.rank, 1, kMaxRank, &s.rank_k},
                 {"--vocab", preset.vocab, 1, kMaxVocab, &s.vocab_size},
                 {"--context", preset.context, 1, kMaxBlockSize, &plan.context}};
  for (const auto& n : numbers) {
    T6_ASSIGN_OR_RETURN(const int64_t value, args.Int(n.flag, n.preset, n.least, n.most));
    *n.to = static_cast<int>(value);
  }
  if (s.head_dim % 2 != 0)
    return MakeStatus(absl::StatusCode::kOutOfRange, "--head-dim is {}; it must be even", s.head_dim);
  s.rank_v = s.rank_k;
  s.mlp_width = OfficialMlpWidth(s.width);
  s.head_norm = args.Has("--groupnorm");
  T6_ASSIGN_OR_RETURN(plan.dtype, ReadDType(args, preset.dtype));
  T6_ASSIGN_OR_RETURN(const int64_t seed, args.Int("--seed", 0, 0, INT64_MAX));
  plan.seed = static_cast<uint64_t>(seed);
  return plan;
}

// The keys and their order are those that the official training code writes.
std::string ConfigText(const Plan& plan) {
  const T6Sizes& s = plan.sizes;
  nlohmann::ordered_json config = {{"vocab_size", s.vocab_size},
                                   {"n_layer", s.n_layers},
                                   {"n_head", s.n_heads},
                                   {"head_dim", s.head_dim},
                                   {"n_embd", s.width},
                                   {"rank", s.rank_k},
                                   {"q_rank", s.rank_q},
                                   {"block_size", plan.context},
                                   {"bias", false},
                                   {"dropout", 0.0},
                                   {"scale_attn_by_inverse_layer_idx", false},
                                   {"using_groupnorm", s.head_norm},
                                   {"architectures", {"GPT"}},
                                   {"model_type", "gpt2"},
                                   {"torch_dtype", plan.dtype == DType::kBF16 ? "bfloat16" : "float32"}};
  return config.dump(2) + "\n";
}

// SplitMix64: a tensor's numbers depend on the seed and its name alone, not on what was written before it.
class Random {
 public:
  Random(uint64_t seed, std::string_view name) : state_(seed) {
    for (const char c : name) state_ = (state_ ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }

  // The sum of four uniform numbers, scaled to mean 0 and deviation 0.02: near enough to a normal one, and no
  // library's sine or logarithm is in it, so that it is the same everywhere.
  float Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    z ^= z >> 31;
    const auto sum = static_cast<int>((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
    constexpr float kDeviation = 37837.2f;  // of the sum: 65536 / sqrt(3)
    return static_cast<float>(sum - 2 * 65535) * (0.02f / kDeviation);
  }

 private:
  uint64_t state_;
};

Status WriteTensor(const TensorHeader& tensor, uint64_t seed, CheckpointWriter& writer) {
  constexpr uint64_t kPiece = 1 << 20;
  const uint64_t total = tensor.n_bytes() / SizeOf(tensor.dtype);
  const bool ones = tensor.shape.size() == 1;  // the weight of a norm
  Random random(seed, tensor.name);
  std::vector<float> wide(std::min(kPiece, total), 1.0f);
  std::vector<bf16> narrow(wide.size());
  for (uint64_t at = 0; at < total; at += kPiece) {
    const size_t n = std::min(kPiece, total - at);
    if (!ones) std::generate_n(wide.begin(), n, [&] { return random.Next(); });
    ConvertToBf16(wide.data(), static_cast<int64_t>(n), narrow.data());
    const auto* bytes = tensor.dtype == DType::kBF16 ? reinterpret_cast<const uint8_t*>(narrow.data())
                                                     : reinterpret_cast<const uint8_t*>(wide.data());
    T6_RETURN_IF_ERROR(writer.Append({bytes, n * SizeOf(tensor.dtype)}));
  }
  return absl::OkStatus();
}

Status Make(const Arguments& args) {
  T6_ASSIGN_OR_RETURN(const Plan plan, ReadPlan(args));
  WriterOptions options;
  options.force = args.Has("--force");
  T6_ASSIGN_OR_RETURN(options.max_shard_bytes, args.Bytes("--max-shard-bytes", options.max_shard_bytes));
  std::vector<TensorHeader> headers;
  uint64_t parameters = 0;
  for (const auto& [name, shape] : T6Shapes(plan.sizes)) {
    headers.push_back({name, plan.dtype, shape});
    parameters += headers.back().n_bytes() / SizeOf(plan.dtype);
  }
  T6_ASSIGN_OR_RETURN(
      const auto writer,
      CheckpointWriter::Create(args.positional(0), headers, {{"config.json", ConfigText(plan)}}, options));
  for (const TensorHeader& header : headers) T6_RETURN_IF_ERROR(WriteTensor(header, plan.seed, *writer));
  T6_RETURN_IF_ERROR(writer->Finish());
  fmt::print("{}: {:.1f} M parameters, {}, {} file{} of weights\n", args.positional(0),
             static_cast<double>(parameters) / 1e6, ShowBytes(writer->total_bytes()), writer->n_shards(),
             writer->n_shards() == 1 ? "" : "s");
  return absl::OkStatus();
}

}  // namespace

Command MakeCommand() {
  return {"make",
          "DST",
          "Random weights of a named size.",
          kDetails,
          1,
          {{"--preset", "NAME", "tiny, docqa, small, medium, large or xl (tiny)"},
           {"--layers", "N", "layers"},
           {"--heads", "N", "heads"},
           {"--head-dim", "N", "numbers in a head; even"},
           {"--width", "N", "numbers in a token's state (n_embd)"},
           {"--q-rank", "N", "R_Q"},
           {"--rank", "N", "R_K and R_V"},
           {"--vocab", "N", "rows of the embedding"},
           {"--context", "N", "block_size"},
           {"--groupnorm", "", "with a norm over each head's output"},
           {"--dtype", "bf16|f32", "type of the weights (the preset's: bf16, tiny f32)"},
           {"--seed", "N", "another seed, other weights (0)"},
           {"--max-shard-bytes", "SIZE", "begin another file beyond this, as in 5GB or 500MiB (5GB)"},
           {"--force", "", "replace what DST holds"}},
          Make};
}

}  // namespace t6
