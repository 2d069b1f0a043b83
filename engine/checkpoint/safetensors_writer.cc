#include "engine/checkpoint/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/checkpoint/safetensors.h"

namespace t6 {
namespace {

std::string HeaderText(const std::vector<TensorHeader>& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};  // what transformers looks for
  uint64_t at = 0;
  for (const TensorHeader& t : tensors) {
    const uint64_t end = at + t.n_bytes();
    header[t.name] = {{"dtype", SafetensorsName(t.dtype)}, {"shape", t.shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  // With the eight bytes of length before it, the data starts at a multiple of 64.
  text.resize((8 + text.size() + 63) / 64 * 64 - 8, ' ');
  return text;
}

Status WriteAll(int fd, const std::string& name, const uint8_t* from, uint64_t size) {
  while (size > 0) {
    const ssize_t n = write(fd, from, std::min<uint64_t>(size, uint64_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return Unavailable("{}: cannot write: {}", name, std::strerror(errno));
    from += n, size -= static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t TensorHeader::n_bytes() const {
  uint64_t bytes = SizeOf(dtype);
  for (const int64_t size : shape) bytes *= static_cast<uint64_t>(size);
  return bytes;
}

StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::filesystem::path& path, const std::vector<TensorHeader>& tensors) {
  auto writer = std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter);
  writer->path_ = path;
  writer->temporary_ = path.string() + fmt::format(".{}.tmp", getpid());
  for (const TensorHeader& t : tensors) writer->left_ += t.n_bytes();
  writer->fd_ = open(writer->temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer->fd_ < 0) {
    return Unavailable("{}: cannot create: {}", writer->temporary_.string(), std::strerror(errno));
  }
  const std::string header = HeaderText(tensors);
  const uint64_t size = header.size();
  const std::string& name = writer->temporary_.native();
  T6_RETURN_IF_ERROR(WriteAll(writer->fd_, name, reinterpret_cast<const uint8_t*>(&size), sizeof size));
  T6_RETURN_IF_ERROR(WriteAll(writer->fd_, name, reinterpret_cast<const uint8_t*>(header.data()), size));
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

Status SafetensorsWriter::Append(std::span<const uint8_t> bytes) {
  if (bytes.size() > left_) return InvalidArgument("{}: more data than its table says", path_.string());
  left_ -= bytes.size();
  return WriteAll(fd_, temporary_.native(), bytes.data(), bytes.size());
}

Status SafetensorsWriter::Finish() {
  if (left_ != 0) return InvalidArgument("{}: {} bytes of data are missing", path_.string(), left_);
  if (fsync(fd_) != 0 || rename(temporary_.c_str(), path_.c_str()) != 0) {
    return Unavailable("{}: cannot finish: {}", path_.string(), std::strerror(errno));
  }
  close(fd_);
  fd_ = -1;
  return absl::OkStatus();
}

}  // namespace t6
