// The GPU that this process uses: found, checked and described. Errors name what an operator can do.
#pragma once

#include <cstddef>
#include <string>

#include "engine/backend/cuda/chip.h"
#include "engine/base/status.h"

namespace t6::cuda {

struct Device {
  int index = 0;
  int n_sms = 0;
  ChipCode code = ChipCode::kNone;
  std::string description;      // "NVIDIA H200, 139 GiB, driver for CUDA 13.0"
  bool is_shared = false;       // by MPS: kernels of other processes may run beside ours
  size_t memory_available = 0;  // what the plan may use: free memory less what the driver takes later
};

// UNAVAILABLE without a driver, with one that is too old, or without a GPU; UNIMPLEMENTED for a GPU that this
// build has no code for.
StatusOr<Device> OpenDevice();

// RESOURCE_EXHAUSTED for memory that the plan had room for and that now is not there: of the GPU, of which
// `free` bytes are left, or pinned memory of the host.
Status NoDeviceMemory(size_t bytes, size_t free);
Status NoPinnedMemory(size_t bytes);

// Versions as CUDA counts them: 13000 is 13.0, 0 is none.
Status CheckDriver(int driver_version, int runtime_version);

}  // namespace t6::cuda
