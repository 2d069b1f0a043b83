#include "tools/t6_checkpoint/checkpoint_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

namespace t6 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";

volatile std::sig_atomic_t g_stopped = 0;

// Written beside its name, then renamed over it.
Status WriteSmallFile(const fs::path& path, const std::string& text) {
  const std::string temporary = path.string() + fmt::format(".{}.tmp", getpid());
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (out && rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  unlink(temporary.c_str());
  return Unavailable("{}: cannot write: {}", path.string(), std::strerror(errno));
}

bool IsSafetensorsFile(const std::string& name) {
  return name == kIndex || (name.starts_with("model") && name.ends_with(".safetensors"));
}

}  // namespace

StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Create(const fs::path& directory,
                                                                     const std::vector<TensorHeader>& tensors,
                                                                     std::map<std::string, std::string> files,
                                                                     const WriterOptions& options) {
  auto writer = std::unique_ptr<CheckpointWriter>(new CheckpointWriter);
  writer->directory_ = directory;
  writer->files_ = std::move(files);
  writer->PlanShards(tensors, options.max_shard_bytes);
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return InvalidArgument("{}: cannot be made a folder: {}", directory.string(), error.message());
  if (!options.force) T6_RETURN_IF_ERROR(writer->CheckFree());
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { g_stopped = 1; });
  for (Shard& shard : writer->shards_) {
    T6_ASSIGN_OR_RETURN(shard.writer, SafetensorsWriter::Create(directory / shard.name, shard.tensors));
  }
  writer->progress_ = std::make_unique<Progress>("writing", writer->total_);
  return writer;
}

void CheckpointWriter::PlanShards(const std::vector<TensorHeader>& tensors, uint64_t max_shard_bytes) {
  for (const TensorHeader& t : tensors) {
    const uint64_t bytes = t.n_bytes();
    if (shards_.empty() || shards_.back().bytes + bytes > max_shard_bytes) shards_.emplace_back();
    shards_.back().tensors.push_back(t);
    shards_.back().bytes += bytes;
    total_ += bytes;
  }
  const size_t n = shards_.size();
  for (size_t i = 0; i < n; ++i) {
    shards_[i].name =
        n == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, n);
  }
}

Status CheckpointWriter::CheckFree() const {
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    if (!IsSafetensorsFile(name) && !files_.contains(name)) continue;
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "{} is there already; --force replaces it",
                      entry.path().string());
  }
  return absl::OkStatus();
}

Status CheckpointWriter::Append(std::span<const uint8_t> bytes) {
  if (g_stopped)
    return MakeStatus(absl::StatusCode::kCancelled, "stopped by a signal; nothing was left behind");
  while (current_ < shards_.size() && in_shard_ == shards_[current_].bytes) ++current_, in_shard_ = 0;
  if (current_ == shards_.size()) return InvalidArgument("{}: more data than tensors", directory_.string());
  T6_RETURN_IF_ERROR(shards_[current_].writer->Append(bytes));
  in_shard_ += bytes.size();
  progress_->Advance(bytes.size());
  return absl::OkStatus();
}

// An older checkpoint's shards, index or single file would be read together with, or instead of, the new
// ones.
Status CheckpointWriter::RemoveStale() const {
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    const bool ours =
        std::any_of(shards_.begin(), shards_.end(), [&](const Shard& s) { return s.name == name; });
    if (IsSafetensorsFile(name) && !ours) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) {
    std::error_code error;
    if (!fs::remove(path, error))
      return Unavailable("{}: cannot be replaced: {}", path.string(), error.message());
  }
  return absl::OkStatus();
}

std::string CheckpointWriter::IndexText() const {
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = total_;
  for (const Shard& shard : shards_) {
    for (const TensorHeader& t : shard.tensors) index["weight_map"][t.name] = shard.name;
  }
  return index.dump(2) + "\n";
}

Status CheckpointWriter::Finish() {
  progress_.reset();
  for (Shard& shard : shards_) T6_RETURN_IF_ERROR(shard.writer->Finish());
  T6_RETURN_IF_ERROR(RemoveStale());
  for (const auto& [name, text] : files_) T6_RETURN_IF_ERROR(WriteSmallFile(directory_ / name, text));
  if (shards_.size() == 1) return absl::OkStatus();
  return WriteSmallFile(directory_ / kIndex, IndexText());
}

}  // namespace t6
