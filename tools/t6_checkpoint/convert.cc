#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/base/read_file.h"
#include "engine/checkpoint/bounded_json.h"
#include "engine/checkpoint/file_bytes.h"
#include "engine/checkpoint/tensor_source.h"
#include "tools/t6_checkpoint/checkpoint_writer.h"
#include "tools/t6_checkpoint/commands.h"

namespace t6 {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kDetails = R"(
Reads the weights of SRC (pytorch_model.bin, model.safetensors, or shards of either) and writes them to the folder
DST as model.safetensors, with SRC's config and tokenizer files beside it. An lm_head that repeats the embedding is
left out, as safetensors files do. Works for every variant, served or not.
)";

constexpr int64_t kPiece = 1 << 20;  // numbers converted at a time
constexpr uint64_t kMaxSideFile = uint64_t{256} << 20;

constexpr const char* kSideFiles[] = {"config.json", "generation_config.json", "tokenizer.json",
                                      "vocab.json",  "tokenizer_config.json",  "special_tokens_map.json",
                                      "merges.txt",  "chat_template.jinja"};

StatusOr<std::map<std::string, std::string>> ReadSideFiles(const fs::path& source) {
  std::map<std::string, std::string> files;
  for (const char* name : kSideFiles) {
    auto text = ReadTextFile(source / name, kMaxSideFile);
    if (absl::IsNotFound(text.status())) continue;
    if (!text.ok()) return text.status();
    files[name] = *std::move(text);
  }
  return files;
}

// config.json's torch_dtype says what the weights are; the rest stays as it was.
Status NameType(std::string_view torch_dtype, std::map<std::string, std::string>& files) {
  const auto found = files.find("config.json");
  if (found == files.end()) return absl::OkStatus();
  const auto checked = ParseBoundedJson(found->second);
  if (!checked.ok()) return Annotate(checked.status(), "config.json");
  auto config = nlohmann::ordered_json::parse(found->second);
  config["torch_dtype"] = torch_dtype;
  found->second = config.dump(2) + "\n";
  return absl::OkStatus();
}

bool RepeatsEmbedding(const TensorSource& tensors, const std::string& name, const TensorView& view) {
  if (name != "lm_head.weight") return false;
  const auto wte = tensors.Find("transformer.wte.weight");
  if (!wte.ok() || wte->dtype != view.dtype || wte->shape != view.shape) return false;
  return wte->data == view.data || std::memcmp(wte->data, view.data, view.n_bytes()) == 0;
}

Status WriteTensor(const TensorView& view, DType to, CheckpointWriter& writer) {
  std::vector<float> wide(static_cast<size_t>(std::min(kPiece, view.n_elements())));
  std::vector<bf16> narrow(to == DType::kBF16 ? wide.size() : 0);
  const auto* from = static_cast<const uint8_t*>(view.data);
  for (int64_t at = 0; at < view.n_elements(); at += kPiece) {
    const int64_t n = std::min(kPiece, view.n_elements() - at);
    const uint8_t* piece = from + static_cast<size_t>(at) * SizeOf(view.dtype);
    if (view.dtype != to) ConvertToFloat(piece, view.dtype, n, wide.data());
    if (view.dtype != to && to == DType::kF32) piece = reinterpret_cast<const uint8_t*>(wide.data());
    if (view.dtype != to && to == DType::kBF16) {
      ConvertToBf16(wide.data(), n, narrow.data());
      piece = reinterpret_cast<const uint8_t*>(narrow.data());
    }
    T6_RETURN_IF_ERROR(writer.Append({piece, static_cast<size_t>(n) * SizeOf(to)}));
  }
  return absl::OkStatus();
}

Status Convert(const Arguments& args) {
  const fs::path source = args.positional(0), target = args.positional(1);
  T6_ASSIGN_OR_RETURN(const std::string dtype, args.Choice("--dtype", {"keep", "bf16", "f32"}));
  WriterOptions options;
  options.force = args.Has("--force");
  T6_ASSIGN_OR_RETURN(options.max_shard_bytes, args.Bytes("--max-shard-bytes", options.max_shard_bytes));
  std::error_code error;
  if (fs::equivalent(source, target, error)) {
    return InvalidArgument("{} and {} are the same folder", source.string(), target.string());
  }
  T6_ASSIGN_OR_RETURN(const std::unique_ptr<TensorSource> tensors, OpenCheckpoint(source));
  T6_ASSIGN_OR_RETURN(auto files, ReadSideFiles(source));
  if (dtype != "keep") T6_RETURN_IF_ERROR(NameType(dtype == "bf16" ? "bfloat16" : "float32", files));
  std::vector<TensorHeader> headers;
  for (const std::string& name : tensors->Names()) {
    T6_ASSIGN_OR_RETURN(const TensorView view, tensors->Find(name));
    if (RepeatsEmbedding(*tensors, name, view)) continue;
    const DType to = dtype == "keep" ? view.dtype : dtype == "bf16" ? DType::kBF16 : DType::kF32;
    headers.push_back({name, to, view.shape});
  }
  T6_ASSIGN_OR_RETURN(const auto writer,
                      CheckpointWriter::Create(target, headers, std::move(files), options));
  for (const TensorHeader& header : headers) {
    T6_ASSIGN_OR_RETURN(const TensorView view, tensors->Find(header.name));
    T6_RETURN_IF_ERROR(WriteTensor(view, header.dtype, *writer));
  }
  T6_RETURN_IF_ERROR(writer->Finish());
  fmt::print("{}: {} tensors, {}, {} file{} of weights\n", target.string(), headers.size(),
             ShowBytes(writer->total_bytes()), writer->n_shards(), writer->n_shards() == 1 ? "" : "s");
  return absl::OkStatus();
}

}  // namespace

Command ConvertCommand() {
  return {"convert",
          "SRC DST",
          "A checkpoint to safetensors.",
          kDetails,
          2,
          {{"--dtype", "keep|bf16|f32", "type of the written weights (keep)"},
           {"--max-shard-bytes", "SIZE", "begin another file beyond this, as in 5GB or 500MiB (5GB)"},
           {"--force", "", "replace what DST holds"}},
          Convert};
}

}  // namespace t6
