#include "engine/tensor/buffer.h"

#include <sys/mman.h>

#include <algorithm>

namespace t6 {
namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

void internal::Unmap::operator()(uint8_t* p) const { munmap(p, bytes); }

StatusOr<HostBuffer> HostBuffer::Allocate(size_t bytes) {
  // mmap gives zeroed pages that cost nothing until touched; a large buffer is cut to a huge-page boundary.
  const size_t want = std::max<size_t>(bytes, 1);
  const bool huge = want >= kHugePage;
  const size_t mapped = huge ? (want + 2 * kHugePage - 1) / kHugePage * kHugePage : want;
  void* raw =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return ResourceExhausted("cannot allocate {} bytes of host memory", bytes);
  auto* first = static_cast<uint8_t*>(raw);
  size_t kept = mapped;
  if (huge) {
    auto* aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(first) + kHugePage - 1) /
                                               kHugePage * kHugePage);
    if (aligned != first) munmap(first, static_cast<size_t>(aligned - first));
    kept = mapped - static_cast<size_t>(aligned - first);
    first = aligned;
    madvise(first, kept, MADV_HUGEPAGE);
  }
  HostBuffer buffer;
  buffer.data_ = std::unique_ptr<uint8_t[], internal::Unmap>(first, internal::Unmap{kept});
  buffer.size_ = bytes;
  return buffer;
}

}  // namespace t6
