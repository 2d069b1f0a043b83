#include "engine/tensor/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

namespace t6 {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20, kAlignment = 64;
// In debug builds a page that nobody may touch follows every buffer, and small ones end where it begins: what
// reads or writes beyond fails there and then, also in code that no sanitizer sees (oneDNN makes its own).
#ifdef NDEBUG
constexpr bool kGuarded = false;
#else
constexpr bool kGuarded = true;
#endif

size_t RoundUp(size_t n, size_t step) { return (n + step - 1) / step * step; }

}  // namespace

void internal::Unmap::operator()(uint8_t* p) const {
  munmap(reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) / kPage * kPage), bytes);
}

StatusOr<HostBuffer> HostBuffer::Allocate(size_t bytes) {
  // mmap gives zeroed pages that cost nothing until touched; a large buffer is cut to a huge-page boundary.
  const size_t want = std::clamp<size_t>(bytes, 1, PTRDIFF_MAX), guard = kGuarded ? kPage : 0;
  const bool huge = want >= kHugePage;
  const size_t usable = RoundUp(want, huge ? kHugePage : kPage);
  const size_t mapped = usable + (huge ? kHugePage : 0) + guard;
  void* raw =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return ResourceExhausted("cannot allocate {} bytes of host memory", bytes);
  auto* first = static_cast<uint8_t*>(raw);
  uint8_t* end = first + mapped;
  if (huge) {
    auto* aligned = reinterpret_cast<uint8_t*>(RoundUp(reinterpret_cast<uintptr_t>(first), kHugePage));
    if (aligned != first) munmap(first, static_cast<size_t>(aligned - first));
    first = aligned;
    madvise(first, static_cast<size_t>(end - guard - first), MADV_HUGEPAGE);
  }
  const auto kept = static_cast<size_t>(end - first);
  if (kGuarded) {
    const size_t before_guard = RoundUp(want, kPage);
    mprotect(first + before_guard, kPage, PROT_NONE);
    if (!huge) first += (before_guard - want) / kAlignment * kAlignment;
  }
  HostBuffer buffer;
  buffer.data_ = std::unique_ptr<uint8_t[], internal::Unmap>(first, internal::Unmap{kept});
  buffer.size_ = bytes;
  return buffer;
}

}  // namespace t6
