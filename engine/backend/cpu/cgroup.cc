#include "engine/backend/cpu/cgroup.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace t6 {
namespace {

namespace fs = std::filesystem;

std::optional<std::string> FirstLine(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  if (!file || !std::getline(file, line)) return std::nullopt;
  return line;
}

// "max", "-1" and anything else that is no count is no limit.
std::optional<uint64_t> ParseCount(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<uint64_t> ReadCount(const fs::path& path) {
  const std::optional<std::string> line = FirstLine(path);
  return line ? ParseCount(*line) : std::nullopt;
}

template <typename T>
void Tighten(std::optional<T>& limit, T value) {
  limit = limit ? std::min(*limit, value) : value;
}

void TightenMemory(CgroupLimits& limits, std::optional<uint64_t> limit, std::optional<uint64_t> used) {
  constexpr uint64_t kUnlimited = uint64_t{1} << 60;  // v1 writes a huge number for "none"
  if (!limit || *limit >= kUnlimited) return;
  Tighten(limits.memory_available, static_cast<size_t>(*limit - std::min(*limit, used.value_or(0))));
}

void TightenCpus(CgroupLimits& limits, std::optional<uint64_t> quota, std::optional<uint64_t> period) {
  if (!quota || !period || *quota == 0 || *period == 0) return;
  Tighten(limits.cpus, static_cast<double>(*quota) / static_cast<double>(*period));
}

void ReadGroupV2(const fs::path& group, CgroupLimits& limits) {
  if (const std::optional<std::string> line = FirstLine(group / "cpu.max")) {
    const size_t space = line->find(' ');
    if (space != std::string::npos) {
      TightenCpus(limits, ParseCount(std::string_view(*line).substr(0, space)),
                  ParseCount(std::string_view(*line).substr(space + 1)));
    }
  }
  TightenMemory(limits, ReadCount(group / "memory.max"), ReadCount(group / "memory.current"));
}

void ReadCpuV1(const fs::path& group, CgroupLimits& limits) {
  TightenCpus(limits, ReadCount(group / "cpu.cfs_quota_us"), ReadCount(group / "cpu.cfs_period_us"));
}

void ReadMemoryV1(const fs::path& group, CgroupLimits& limits) {
  TightenMemory(limits, ReadCount(group / "memory.limit_in_bytes"),
                ReadCount(group / "memory.usage_in_bytes"));
}

// Calls read(group) for the hierarchy's mount point and each folder from there down to the process's own
// group. Inside a container the path may name folders that only the host sees; the mount point is then the
// group itself.
template <typename Read>
void ForEachGroup(const fs::path& mount, const std::string& group, const Read& read) {
  fs::path folder = mount;
  read(folder);
  for (const fs::path& name : fs::path(group).relative_path()) {
    if (name == "..") return;
    folder /= name;
    read(folder);
  }
}

}  // namespace

CgroupLimits ReadCgroupLimits(const fs::path& root) {
  CgroupLimits limits;
  const fs::path mount = root / "sys/fs/cgroup";
  std::ifstream groups(root / "proc/self/cgroup");
  // Each line is "id:controllers:/path"; v2 has the id 0 and no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      ForEachGroup(mount, path, [&](const fs::path& group) { ReadGroupV2(group, limits); });
      continue;
    }
    std::istringstream names(controllers);
    for (std::string name; std::getline(names, name, ',');) {
      if (name == "cpu") {
        ForEachGroup(mount / "cpu", path, [&](const fs::path& group) { ReadCpuV1(group, limits); });
        ForEachGroup(mount / "cpu,cpuacct", path, [&](const fs::path& group) { ReadCpuV1(group, limits); });
      } else if (name == "memory") {
        ForEachGroup(mount / "memory", path, [&](const fs::path& group) { ReadMemoryV1(group, limits); });
      }
    }
  }
  return limits;
}

}  // namespace t6
