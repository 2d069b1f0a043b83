// Pinned memory in which the host writes a step's arrays while the copies of those of the step before may
// still run: four buffers in turn, for a step may be planned twice. Next, then Copy. Allocates in Reserve
// alone; one thread calls it.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "engine/backend/cuda/cuda_memory.h"

namespace t6::cuda {

class Staging {
 public:
  Staging() = default;
  ~Staging() {
    for (Buffer& b : buffers_) {
      if (b.copied != nullptr) cudaEventDestroy(b.copied);
    }
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // `bytes`: of the largest step. No copy is on its way.
  Status Reserve(size_t bytes) {
    for (Buffer& b : buffers_) {
      T6_RETURN_IF_ERROR(b.memory.Allocate(bytes));
      if (b.copied == nullptr) {
        T6_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&b.copied, cudaEventDisableTiming));
      }
      b.in_use = false;
    }
    return absl::OkStatus();
  }
  size_t size() const { return buffers_[0].memory.size(); }

  // The buffer to fill: waits for its copy of two steps before or longer, done long ago.
  StatusOr<uint8_t*> Next() {
    const Buffer& b = buffers_[turn_ = (turn_ + 1) % buffers_.size()];
    if (b.in_use) T6_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(b.copied));
    return b.memory.as<uint8_t>();
  }
  // The first `bytes` of it to the device.
  Status Copy(void* device, size_t bytes, cudaStream_t stream) {
    Buffer& b = buffers_[turn_];
    T6_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(device, b.memory.as<void>(), bytes, cudaMemcpyHostToDevice, stream));
    T6_RETURN_IF_CUDA_ERROR(cudaEventRecord(b.copied, stream));
    b.in_use = true;
    return absl::OkStatus();
  }

 private:
  struct Buffer {
    PinnedMemory memory;
    cudaEvent_t copied = nullptr;
    bool in_use = false;
  };
  std::array<Buffer, 4> buffers_;
  size_t turn_ = 0;
};

}  // namespace t6::cuda
