// A checkpoint's tensors by name, as views of mapped files. Every byte range was checked against its file;
// nothing in a checkpoint is ever executed. Errors name the file, and the tensor or the offset.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/tensor/tensor_view.h"

namespace t6 {

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Sorted.
  virtual std::vector<std::string> Names() const = 0;
  // NOT_FOUND names the tensor. The view lives as long as the source.
  virtual StatusOr<TensorView> Find(std::string_view name) const = 0;
};

// Opens the weights of a checkpoint folder: model.safetensors, model.safetensors.index.json (shards),
// pytorch_model.bin or pytorch_model.bin.index.json, the first of these that is there.
StatusOr<std::unique_ptr<TensorSource>> OpenCheckpoint(const std::filesystem::path& directory);

}  // namespace t6
