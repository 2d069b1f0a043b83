#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "engine/base/read_file.h"
#include "engine/checkpoint/bounded_json.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/checkpoint/tensor_source.h"
#include "engine/checkpoint/tensor_table.h"
#include "engine/checkpoint/torch_zip.h"

namespace t6 {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;
constexpr size_t kMaxShards = 4096;

using AddFile = Status (*)(std::unique_ptr<FileBytes>, TensorTable&);

struct Format {
  const char* file;
  const char* index;
  AddFile add;
};

constexpr Format kFormats[] = {
    {"model.safetensors", "model.safetensors.index.json", AddSafetensors},
    {"pytorch_model.bin", "pytorch_model.bin.index.json", AddTorchZip},
};

Status CheckShardName(std::string_view tensor, std::string_view file) {
  const bool plain = std::all_of(file.begin(), file.end(),
                                 [](char c) { return c > ' ' && c <= '~' && c != '/' && c != '\\'; });
  if (plain && !file.empty() && file.front() != '.' && file.size() <= 255) return absl::OkStatus();
  return InvalidArgument("tensor \"{}\" is said to be in \"{}\", which is no plain file name",
                         tensor.substr(0, 256), nlohmann::json(file).dump(-1, ' ', true).substr(0, 256));
}

// Tensor -> file name.
StatusOr<std::map<std::string, std::string>> ReadIndex(const fs::path& path) {
  T6_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxIndexBytes));
  T6_ASSIGN_OR_RETURN(const nlohmann::json index, ParseBoundedJson(text));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return InvalidArgument("has no \"weight_map\"");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string())
      return InvalidArgument("tensor \"{}\": its file is no string", tensor.substr(0, 256));
    T6_RETURN_IF_ERROR(CheckShardName(tensor, file.get<std::string>()));
    files.emplace(tensor, file.get<std::string>());
  }
  if (files.empty()) return InvalidArgument("its \"weight_map\" is empty");
  return files;
}

Status AddShards(const fs::path& directory, const std::map<std::string, std::string>& index, AddFile add,
                 TensorTable& table) {
  std::set<std::string> shards;
  for (const auto& [tensor, file] : index) shards.insert(file);
  if (shards.size() > kMaxShards) return InvalidArgument("names {} shards", shards.size());
  for (const std::string& shard : shards) {
    T6_ASSIGN_OR_RETURN(auto file, FileBytes::Open(directory / shard));
    T6_RETURN_IF_ERROR(add(std::move(file), table));
  }
  for (const auto& [tensor, file] : index) {
    const std::string_view found = table.FileOf(tensor);
    if (found == (directory / file).string()) continue;
    if (found.empty())
      return InvalidArgument("tensor \"{}\" is said to be in {}, but is not there", tensor, file);
    return InvalidArgument("tensor \"{}\" is said to be in {}, but is in {}", tensor, file, found);
  }
  for (const std::string& tensor : table.Names()) {
    if (!index.contains(tensor))
      return InvalidArgument("tensor \"{}\" of {} is not listed", tensor, table.FileOf(tensor));
  }
  return absl::OkStatus();
}

// Something of that name is there, or who knows; whether it can be used is for Open to say.
bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found;
}

}  // namespace

StatusOr<std::unique_ptr<TensorSource>> OpenCheckpoint(const fs::path& directory) {
  auto table = std::make_unique<TensorTable>();
  for (const Format& format : kFormats) {
    if (Exists(directory / format.file)) {
      T6_ASSIGN_OR_RETURN(auto file, FileBytes::Open(directory / format.file));
      T6_RETURN_IF_ERROR(format.add(std::move(file), *table));
      return table;
    }
    if (const fs::path index = directory / format.index; Exists(index)) {
      const auto files = ReadIndex(index);
      if (!files.ok()) return Annotate(files.status(), index.string());
      const Status added = AddShards(directory, *files, format.add, *table);
      if (!added.ok()) return Annotate(added, index.string());
      return table;
    }
  }
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    return NotFound("{}: {}", directory.string(), Exists(directory) ? "not a folder" : "no such folder");
  }
  return NotFound(
      "{}: no model.safetensors, model.safetensors.index.json, pytorch_model.bin or "
      "pytorch_model.bin.index.json is there",
      directory.string());
}

}  // namespace t6
