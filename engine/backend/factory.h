// Makes the backend that a configuration names. The only place that knows which devices were compiled in.
#pragma once

#include <memory>
#include <string>

#include "engine/backend/backend.h"

namespace t6 {

struct BackendOptions {
  std::string device = "auto";    // auto | cpu | cuda
  bool portable_kernels = false;  // cuda: as on a GPU without Hopper's instructions; for tests
  bool times_operations = false;  // see Backend::OperationTimes
  int threads = 0;                // CPU workers; 0: by affinity mask and cgroup quota
};

struct MadeBackend {
  std::unique_ptr<Backend> backend;
  std::string why_not_cuda;  // "auto" fell back to the CPU although this build has CUDA; else empty
};

// INVALID_ARGUMENT names an unknown device; UNIMPLEMENTED one that this build, or the build for this GPU,
// does not have; UNAVAILABLE says what a GPU lacks.
StatusOr<MadeBackend> MakeBackend(const BackendOptions& options);

}  // namespace t6
