// The CUDA device: one GPU of compute capability 9, FlashTPA over factor pages. See backend.h for the
// operations. Launches are ordered on one stream; a step is waited for once, in WaitSample, and a second one
// may be launched before.
#pragma once

#include <memory>

#include "engine/backend/backend.h"

namespace t6 {

// UNAVAILABLE says what is missing: a GPU, a driver (or one recent enough), cuBLASLt. UNIMPLEMENTED names a
// GPU that this build has no code for.
StatusOr<std::unique_ptr<Backend>> MakeCudaBackend();

}  // namespace t6
