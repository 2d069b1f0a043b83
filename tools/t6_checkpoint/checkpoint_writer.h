// A checkpoint folder in the making: model.safetensors (or shards and their index) and small files beside it.
// Nothing appears under its own name before Finish(), and a run that ends early, by an error or by SIGINT or
// SIGTERM, takes its temporary files with it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/checkpoint/safetensors_writer.h"
#include "tools/t6_checkpoint/progress.h"

namespace t6 {

struct WriterOptions {
  uint64_t max_shard_bytes = 5'000'000'000;
  bool force = false;  // replace what is there
};

class CheckpointWriter {
 public:
  // `files`: name -> text. From now on SIGINT and SIGTERM end the next Append(), not the process.
  // FAILED_PRECONDITION names what is in the way without `force`.
  static StatusOr<std::unique_ptr<CheckpointWriter>> Create(const std::filesystem::path& directory,
                                                            const std::vector<TensorHeader>& tensors,
                                                            std::map<std::string, std::string> files,
                                                            const WriterOptions& options);

  // The next bytes of the tensors, in their order, in pieces that do not cross from one tensor to the next.
  // CANCELLED once a signal came.
  Status Append(std::span<const uint8_t> bytes);
  Status Finish();

  uint64_t total_bytes() const { return total_; }
  size_t n_shards() const { return shards_.size(); }

 private:
  struct Shard {
    std::string name;
    std::vector<TensorHeader> tensors;
    uint64_t bytes = 0;
    std::unique_ptr<SafetensorsWriter> writer;
  };

  CheckpointWriter() = default;
  void PlanShards(const std::vector<TensorHeader>& tensors, uint64_t max_shard_bytes);
  Status CheckFree() const;
  Status RemoveStale() const;
  std::string IndexText() const;

  std::filesystem::path directory_;
  std::map<std::string, std::string> files_;
  std::vector<Shard> shards_;
  size_t current_ = 0;     // shard
  uint64_t in_shard_ = 0;  // bytes of it that were appended
  uint64_t total_ = 0;
  std::unique_ptr<Progress> progress_;
};

}  // namespace t6
