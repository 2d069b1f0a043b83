// Host memory that owns itself: aligned to 64 bytes (2 MiB and huge pages when large), zeroed, freed when
// destroyed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/base/status.h"

namespace t6 {

namespace internal {
struct Unmap {
  size_t bytes = 0;
  void operator()(uint8_t* p) const;
};
}  // namespace internal

class HostBuffer {
 public:
  HostBuffer() = default;
  // RESOURCE_EXHAUSTED when the system has no such memory.
  static StatusOr<HostBuffer> Allocate(size_t bytes);

  uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  std::unique_ptr<uint8_t[], internal::Unmap> data_;
  size_t size_ = 0;
};

}  // namespace t6
