// The CPU device: one thread pool, weights packed once, FlashTPA over pages. See backend.h for the
// operations.
#pragma once

#include <memory>

#include "engine/backend/backend.h"

namespace t6 {

// threads 0: as many as the affinity mask and the cgroup quota allow.
StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(int threads);

}  // namespace t6
