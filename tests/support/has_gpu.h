// Which tests of a GPU may be passed over: a GPU that is there and cannot be used is a failure, not a reason.
#pragma once

#include <absl/status/status.h>

#include <filesystem>
#include <string>

namespace t6::testing {

// Whether or not it can be used; a container may have another than the first.
inline bool HasGpu() {
  for (const auto& entry : std::filesystem::directory_iterator("/dev")) {
    const std::string name = entry.path().filename();
    if (name.starts_with("nvidia") && name.find_first_not_of("0123456789", 6) == std::string::npos &&
        name.size() > 6) {
      return true;
    }
  }
  return false;
}

// `status`: what opening the GPU gave. Not in this build, of a kind that it has no code for, or none here.
inline bool MayPassOverGpu(const absl::Status& status) { return absl::IsUnimplemented(status) || !HasGpu(); }

}  // namespace t6::testing
