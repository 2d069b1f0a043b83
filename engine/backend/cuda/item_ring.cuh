// A ring in shared memory for items of any size, which one lane asks the copy engine for and a fixed number
// of warps read, all in the same order. An item lies in one piece, on a multiple of 1024 bytes. The largest
// may take a third of the ring: one is being read, one may be wasted where the ring ends, one must fit.
#pragma once

#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {

inline constexpr int kItemAlignment = 1024;
inline constexpr int kItemSlots = 16;  // items in the ring, at most; a power of two

// What both sides keep: where items lie follows from their sizes.
struct ItemPlaces {
  int ring_bytes;
  int offset = 0;
  uint32_t index = 0;

  __device__ static int SizeOf(int bytes) {
    return (bytes + kItemAlignment - 1) / kItemAlignment * kItemAlignment;
  }
  // The next item's place; `skipped`: bytes that the ring's end wasted before it.
  __device__ int Place(int size, int* skipped) {
    const bool wraps = offset + size > ring_bytes;
    *skipped = wraps ? ring_bytes - offset : 0;
    const int at = wraps ? 0 : offset;
    offset = at + size;
    return at;
  }
};

struct ItemBarriers {
  uint32_t address;  // of 2 * kItemSlots barriers: full, then empty

  __device__ uint32_t Full(uint32_t index) const { return address + index % kItemSlots * 8; }
  __device__ uint32_t Empty(uint32_t index) const { return Full(index) + kItemSlots * 8; }
  // One thread, before all others may use them.
  __device__ void Init(int n_readers) const {
    for (int i = 0; i < kItemSlots; ++i) {
      ptx::BarrierInit(Full(i), 1);
      ptx::BarrierInit(Empty(i), n_readers);
    }
    ptx::BarrierInitFence();
  }
};

// A warp's: all of its lanes call Acquire together, or lane 0 alone and then all Agree. `begins`: in shared
// memory, where each slot's item began, in bytes since the start.
class ItemWriter {
 public:
  __device__ ItemWriter(uint32_t ring, int ring_bytes, const ItemBarriers& barriers,
                        uint32_t (&begins)[kItemSlots])
      : ring_(ring), barriers_(barriers), places_{ring_bytes}, begins_(begins) {}

  // Waits for room; gives the item's address and its full barrier, which the caller tells the bytes to come.
  __device__ uint2 Acquire(int bytes) {
    int skipped = 0;
    const int at = places_.Place(ItemPlaces::SizeOf(bytes), &skipped);
    const uint32_t begin = total_ + skipped, end = begin + (places_.offset - at), index = places_.index++;
    while (oldest_ < index &&
           (index - oldest_ == kItemSlots ||
            end - begins_[oldest_ % kItemSlots] > static_cast<uint32_t>(places_.ring_bytes))) {
      ptx::BarrierWait(barriers_.Empty(oldest_), oldest_ / kItemSlots & 1);
      ++oldest_;
    }
    begins_[index % kItemSlots] = begin;  // the same by every lane
    total_ = end;
    return make_uint2(ring_ + at, barriers_.Full(index));
  }

  // After lane 0 went on alone.
  __device__ void Agree() {
    places_.offset = __shfl_sync(~0u, places_.offset, 0), places_.index = __shfl_sync(~0u, places_.index, 0);
    total_ = __shfl_sync(~0u, total_, 0), oldest_ = __shfl_sync(~0u, oldest_, 0);
  }

  // As decode's producer asks: copy(address, full barrier) says the bytes itself.
  template <typename Copy>
  __device__ void Fill(int bytes, Copy copy) {
    const uint2 at = Acquire(bytes);
    copy(at.x, at.y);
  }

 private:
  uint32_t ring_;
  ItemBarriers barriers_;
  ItemPlaces places_;
  uint32_t (&begins_)[kItemSlots];
  uint32_t total_ = 0, oldest_ = 0;  // bytes so far; the oldest item that is not given back
};

// A reading warp's.
class ItemReader {
 public:
  __device__ ItemReader(int ring_bytes, const ItemBarriers& barriers, int lane)
      : barriers_(barriers), places_{ring_bytes}, lane_(lane) {}

  // The next item's offset in the ring, when it is there. The one before goes back only now: the assembler
  // moves an arrival above the products whose operands it frees, but nothing over a wait's loop.
  __device__ int Next(int bytes) { return NextOf(ItemPlaces::SizeOf(bytes)); }
  __device__ int NextOf(int size) {
    int skipped = 0;
    const int at = places_.Place(size, &skipped);
    ptx::BarrierWait(barriers_.Full(places_.index), places_.index / kItemSlots & 1);
    Release();
    ++places_.index;
    holds_ = true;
    return at;
  }
  // Earlier, after a barrier behind the last use.
  __device__ void Release() {
    __syncwarp();  // lane 0 speaks for what all of them have read
    if (holds_ && lane_ == 0) ptx::BarrierArrive(barriers_.Empty(places_.index - 1));
    holds_ = false;
  }

 private:
  ItemBarriers barriers_;
  ItemPlaces places_;
  int lane_;
  bool holds_ = false;  // the item before places_.index
};

}  // namespace t6::cuda
