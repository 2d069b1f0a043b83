#include "engine/checkpoint/file_bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace t6 {
namespace {

struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

Status ReadAll(int fd, const std::string& name, uint8_t* to, uint64_t size) {
  for (uint64_t at = 0; at < size;) {
    const size_t want = std::min<uint64_t>(size - at, uint64_t{1} << 30);
    const ssize_t n = pread(fd, to + at, want, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Unavailable("{}: cannot read at byte {}: {}", name, at, std::strerror(errno));
    if (n == 0) return InvalidArgument("{}: ends at byte {} of {}", name, at, size);
    at += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

StatusOr<uint64_t> OpenRegular(const std::filesystem::path& path, Descriptor& file) {
  // O_NONBLOCK: a named pipe in a checkpoint's place must not hang the open.
  file.fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.fd < 0) {
    if (errno == ENOENT) return NotFound("{}: no such file", path.string());
    return InvalidArgument("{}: cannot open: {}", path.string(), std::strerror(errno));
  }
  struct stat info {};
  if (fstat(file.fd, &info) != 0) return Unavailable("{}: {}", path.string(), std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{}: is no regular file", path.string());
  return static_cast<uint64_t>(info.st_size);
}

}  // namespace

StatusOr<std::unique_ptr<FileBytes>> FileBytes::Open(const std::filesystem::path& path, uint64_t read_whole) {
  Descriptor opened;
  T6_ASSIGN_OR_RETURN(const uint64_t size, OpenRegular(path, opened));
  if (size == 0) return InvalidArgument("{}: is empty", path.string());
  auto file = std::unique_ptr<FileBytes>(new FileBytes);
  file->name_ = path.string();
  if (size <= read_whole) {
    T6_ASSIGN_OR_RETURN(file->copy_, HostBuffer::Allocate(size));
    T6_RETURN_IF_ERROR(ReadAll(opened.fd, file->name_, file->copy_.data(), size));
    file->bytes_ = {file->copy_.data(), size};
    return file;
  }
  void* mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, opened.fd, 0);
  if (mapped == MAP_FAILED) return ResourceExhausted("{}: cannot map {} bytes", file->name_, size);
  file->bytes_ = {static_cast<const uint8_t*>(mapped), size};
  file->mapped_ = std::exchange(opened.fd, -1);
  return file;
}

StatusOr<std::unique_ptr<FileBytes>> FileBytes::FromMemory(std::string name, std::span<const uint8_t> bytes) {
  auto file = std::unique_ptr<FileBytes>(new FileBytes);
  file->name_ = std::move(name);
  T6_ASSIGN_OR_RETURN(file->copy_, HostBuffer::Allocate(bytes.size()));
  std::copy(bytes.begin(), bytes.end(), file->copy_.data());
  file->bytes_ = {file->copy_.data(), bytes.size()};
  return file;
}

FileBytes::~FileBytes() {
  if (mapped_ < 0) return;
  munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
  close(mapped_);
}

Status FileBytes::CheckUnchanged() const {
  if (mapped_ < 0) return absl::OkStatus();
  struct stat info {};
  if (fstat(mapped_, &info) != 0 || static_cast<uint64_t>(info.st_size) < bytes_.size()) {
    return InvalidArgument("{}: was cut from {} to {} bytes while it was in use", name_, bytes_.size(),
                           info.st_size);
  }
  return absl::OkStatus();
}

}  // namespace t6
