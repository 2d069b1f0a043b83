// What the control groups (v1 and v2) of this process allow: the least limit of its own group and of all
// above it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>

namespace t6 {

struct CgroupLimits {
  std::optional<double> cpus;              // CPU quota over its period
  std::optional<size_t> memory_available;  // bytes below the tightest memory limit
};

// `root` stands for "/", so that tests can bring their own /proc and /sys.
CgroupLimits ReadCgroupLimits(const std::filesystem::path& root = "/");

}  // namespace t6
