// Makes the backend that a configuration names. The only place that knows which devices were compiled in.
#pragma once

#include <memory>
#include <string>

#include "engine/backend/backend.h"

namespace t6 {

struct BackendOptions {
  std::string device = "auto";  // auto | cpu | cuda
  int threads = 0;              // CPU workers; 0: by affinity mask and cgroup quota
};

// INVALID_ARGUMENT names an unknown device; UNIMPLEMENTED one that this build does not have.
StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options);

}  // namespace t6
