#include "engine/checkpoint/tensor_table.h"

#include <algorithm>

#include "engine/base/check.h"

namespace t6 {
namespace {

constexpr size_t kMaxNameBytes = 256, kMaxTensors = 1 << 18, kMaxDims = 8;
constexpr uint64_t kMaxTensorBytes = uint64_t{1} << 46;

Status CheckName(std::string_view name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (plain && !name.empty() && name.size() <= kMaxNameBytes) return absl::OkStatus();
  std::string shown(name.substr(0, 64));
  for (char& c : shown) {
    if (c < ' ' || c > '~') c = '?';
  }
  return InvalidArgument("tensor name \"{}\" ({} bytes) is no plain text of 1 to {} characters", shown,
                         name.size(), kMaxNameBytes);
}

}  // namespace

StatusOr<uint64_t> CheckedBytes(DType dtype, const std::vector<int64_t>& shape) {
  if (shape.size() > kMaxDims) return InvalidArgument("has {} dimensions", shape.size());
  uint64_t bytes = SizeOf(dtype);
  for (const int64_t size : shape) {
    if (size <= 0 || static_cast<uint64_t>(size) > kMaxTensorBytes / bytes) {
      return InvalidArgument("has the impossible shape {}", TensorView{nullptr, dtype, shape}.ShapeString());
    }
    bytes *= static_cast<uint64_t>(size);
  }
  return bytes;
}

std::vector<std::string> TensorTable::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  return names;
}

StatusOr<TensorView> TensorTable::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return NotFound("the checkpoint has no tensor \"{}\"", name);
  T6_RETURN_IF_ERROR(found->second.file->CheckUnchanged());
  return found->second.view;
}

const FileBytes& TensorTable::AddFile(std::unique_ptr<FileBytes> file) {
  file_bytes_ += file->bytes().size();
  files_.push_back(std::move(file));
  return *files_.back();
}

Status TensorTable::Add(std::string_view name, DType dtype, std::vector<int64_t> shape, uint64_t offset,
                        uint64_t limit) {
  T6_CHECK(!files_.empty());
  T6_RETURN_IF_ERROR(CheckName(name));
  if (tensors_.size() >= kMaxTensors) return InvalidArgument("has more than {} tensors", kMaxTensors);
  if (const auto taken = tensors_.find(name); taken != tensors_.end()) {
    return InvalidArgument("tensor \"{}\" is there twice (also in {})", name, taken->second.file->name());
  }
  const FileBytes& file = *files_.back();
  const auto bytes = CheckedBytes(dtype, shape);
  if (!bytes.ok()) return Annotate(bytes.status(), fmt::format("tensor \"{}\"", name));
  limit = std::min<uint64_t>(limit, file.bytes().size());
  if (offset > limit || *bytes > limit - offset) {
    return InvalidArgument("tensor \"{}\": {} bytes at byte {} reach beyond byte {}", name, *bytes, offset,
                           limit);
  }
  const uint8_t* data = file.bytes().data() + offset;
  if (reinterpret_cast<uintptr_t>(data) % SizeOf(dtype) != 0) {
    T6_ASSIGN_OR_RETURN(data, AlignedCopy(data, *bytes));
  }
  tensors_.emplace(name, Entry{{data, dtype, std::move(shape)}, &file});
  return absl::OkStatus();
}

StatusOr<const uint8_t*> TensorTable::AlignedCopy(const uint8_t* data, uint64_t bytes) {
  // Tensors may share bytes, so many small entries could ask for many large copies.
  const auto key = std::make_pair(data, bytes);
  if (const auto done = copies_.find(key); done != copies_.end()) return done->second.data();
  if (bytes > file_bytes_ - copied_bytes_) {
    return InvalidArgument("tensors that are not aligned to their type share too many bytes");
  }
  copied_bytes_ += bytes;
  T6_ASSIGN_OR_RETURN(HostBuffer copy, HostBuffer::Allocate(bytes));
  std::copy_n(data, bytes, copy.data());
  return copies_.emplace(key, std::move(copy)).first->second.data();
}

std::string_view TensorTable::FileOf(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? std::string_view() : std::string_view(found->second.file->name());
}

}  // namespace t6
