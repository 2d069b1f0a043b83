// Memory of the device and pinned memory of the host that free themselves. Allocating synchronises: at load
// and Reserve only, never in a step.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "engine/backend/cuda/cuda_status.h"
#include "engine/backend/cuda/device.h"

namespace t6::cuda {

enum class MemoryKind { kDevice, kPinned };

template <MemoryKind kKind>
class CudaMemory {
 public:
  CudaMemory() = default;
  CudaMemory(CudaMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  CudaMemory& operator=(CudaMemory&& other) noexcept {
    std::swap(data_, other.data_), std::swap(size_, other.size_);
    return *this;
  }
  ~CudaMemory() {
    if (data_ == nullptr) return;
    kKind == MemoryKind::kDevice ? cudaFree(data_) : cudaFreeHost(data_);
  }

  // Not initialised. What was there before is freed first. RESOURCE_EXHAUSTED says what was missing.
  Status Allocate(size_t bytes) {
    *this = CudaMemory();
    bytes = std::max<size_t>(bytes, 16);
    constexpr bool kIsDevice = kKind == MemoryKind::kDevice;
    void* data = nullptr;
    const cudaError_t error =
        kIsDevice ? cudaMalloc(&data, bytes) : cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // or the next launch would report it
      size_t free = 0, total = 0;
      if (kIsDevice) T6_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free, &total));
      return kIsDevice ? NoDeviceMemory(bytes, free) : NoPinnedMemory(bytes);
    }
    T6_RETURN_IF_CUDA_ERROR(error);
    data_ = data, size_ = bytes;
    return absl::OkStatus();
  }

  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

using DeviceMemory = CudaMemory<MemoryKind::kDevice>;
using PinnedMemory = CudaMemory<MemoryKind::kPinned>;

// A stream that is destroyed after all that uses it.
class Stream {
 public:
  Stream() = default;
  ~Stream() {
    if (stream_ == nullptr) return;
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  Status Create() {
    T6_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    return absl::OkStatus();
  }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace t6::cuda
