// The CUDA device: one GPU, FlashTPA over factor pages by kernels for Hopper or by portable ones (chip.h).
// See backend.h for the operations. Launches are ordered on one stream; a step is waited for once, in
// WaitSample, and a second one may be launched before.
#pragma once

#include <memory>

#include "engine/backend/backend.h"

namespace t6 {

struct CudaOptions {
  bool portable = false;          // on any GPU what one without Hopper's instructions runs, for tests
  bool times_operations = false;  // see Backend::OperationTimes
};

// UNAVAILABLE says what is missing: a GPU, a driver (or one recent enough), cuBLASLt. UNIMPLEMENTED names a
// GPU that this build has no code for.
StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options = {});

}  // namespace t6
