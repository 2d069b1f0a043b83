#include "engine/base/read_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <vector>

namespace t6 {

StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, size_t limit) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found)
    return NotFound("{}: no such file", path.string());
  if (error) return InvalidArgument("{}: cannot be read: {}", path.string(), error.message());
  // A pipe or a device would block, or never end.
  if (!std::filesystem::is_regular_file(status))
    return InvalidArgument("{}: not a regular file", path.string());
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::string text;
  std::vector<char> block(1 << 16);
  while (in.read(block.data(), static_cast<std::streamsize>(block.size())) || in.gcount() > 0) {
    text.append(block.data(), static_cast<size_t>(in.gcount()));
    if (text.size() > limit) return ResourceExhausted("{}: larger than {} bytes", path.string(), limit);
  }
  if (!in.eof()) return InvalidArgument("{}: cannot be read: {}", path.string(), std::strerror(errno));
  return text;
}

}  // namespace t6
