// The producer warp of the decode kernel: halves of pages from global memory into the ring of stages.
#pragma once

#include "engine/backend/cuda/decode_copier.cuh"

namespace t6::cuda {

// The ring as the producer sees it. How many halves are asked for and not there yet is limited, at first to
// `first_in_flight`, later to `max_in_flight`: if every block asked for a whole ring at once, everyone's
// first half would come last.
template <class T>
class StageWriter {
 public:
  __device__ StageWriter(const DecodeParams& p, const BlockShared<T>& shared)
      : p_(p), shared_(shared), limit_(p.first_in_flight) {}

  // copy(stage, full barrier), when a stage is free.
  template <typename Copy>
  __device__ void Fill(int /*bytes*/, Copy copy) {
    if (in_flight_ == limit_) {
      ptx::BarrierWait(shared_.Full(landing_.stage), landing_.parity);
      landing_.Advance(p_.n_stages);
      --in_flight_;
      if (++landed_ % kGrowAfter == 0 && limit_ < p_.max_in_flight) ++limit_;
    }
    ++in_flight_;
    ptx::BarrierWait(shared_.Empty(at_.stage), at_.parity ^ 1);
    copy(shared_.ring_address + at_.stage * p_.stage_bytes, shared_.Full(at_.stage));
    at_.Advance(p_.n_stages);
  }

 private:
  static constexpr int kGrowAfter = 8;  // halves that landed, for each one more in flight

  const DecodeParams& p_;
  const BlockShared<T>& shared_;
  RingPosition at_, landing_;  // the next to be asked for, and the next to arrive
  int limit_, in_flight_ = 0, landed_ = 0;
};

// A block's record as a warp holds it, a word a lane: one look-up.
class BlockRecord {
 public:
  BlockRecord() = default;
  __device__ BlockRecord(const DecodeBlock* block, int lane)
      : word_(lane < static_cast<int>(sizeof(DecodeBlock)) / 4 ? reinterpret_cast<const int32_t*>(block)[lane]
                                                               : 0) {}

  __device__ int begin() const { return Word(offsetof(DecodeBlock, begin)); }
  __device__ int end() const { return Word(offsetof(DecodeBlock, end)); }
  // Lane i has the i-th, below kFirstPages.
  __device__ int32_t first_pages() const {
    const int lane = static_cast<int>(threadIdx.x % 32);
    return __shfl_sync(~0u, word_, (lane + offsetof(DecodeBlock, first_pages) / 4) % 32);
  }
  // What a producer needs of it.
  __device__ DecodeSegment first() const {
    constexpr size_t kFirst = offsetof(DecodeBlock, first);
    DecodeSegment segment{};
    segment.page_offset = Word(kFirst + offsetof(DecodeSegment, page_offset));
    segment.n_pages = Word(kFirst + offsetof(DecodeSegment, n_pages));
    segment.holds_newest = Word(kFirst + offsetof(DecodeSegment, holds_newest));
    return segment;
  }

 private:
  __device__ int32_t Word(size_t offset) const {
    return __shfl_sync(~0u, word_, static_cast<int>(offset / 4));
  }

  int32_t word_ = 0;
};

// Streams the block's pages, key half then value half. All lanes walk; which of them issue, the copier says.
template <class T, class Copier, class Ring>
class Producer {
 public:
  __device__ Producer(const DecodeParams& p, const Copier& copier, Ring& ring, int lane)
      : p_(p), copier_(copier), ring_(ring), lane_(lane) {}

  __device__ void Run(const DecodeBlock* block) { Run(BlockRecord(block, lane_)); }
  __device__ void Run(const BlockRecord& record) {
    const int begin = record.begin(), end = record.end();
    if (begin == end) return;
    const DecodeSegment first = record.first();
    const int n_first = min(first.n_pages, DecodeBlock::kFirstPages);
    CopyPages(record.first_pages(), n_first, first.holds_newest && n_first == first.n_pages);
    CopySegment(first, n_first);
    for (int index = begin + 1; index < end; ++index) CopySegment(p_.plan.segments[index], 0);
    copier_.Finish();
  }

 private:
  __device__ void CopySegment(const DecodeSegment& segment, int done) {
    for (int base = done; base < segment.n_pages; base += 32) {
      const int n = min(32, segment.n_pages - base);
      const int32_t id = lane_ < n ? p_.page_ids[segment.page_offset + base + lane_] : 0;
      CopyPages(id, n, segment.holds_newest && base + n == segment.n_pages);
    }
  }

  // Lane i has the i-th page's id.
  __device__ void CopyPages(int32_t id, int n, bool last_is_newest) {
    for (int i = 0; i < n; ++i) {
      const int64_t row = static_cast<int64_t>(__shfl_sync(~0u, id, i)) * 2 * p_.half_rows;
      const bool issues = Copier::kAllLanes || lane_ == 0;
      if (last_is_newest && i == n - 1 && !p_.stores) {
        // The kernel in front may still be writing this step's token, but the cache may have the rest by
        // then.
        if (issues) copier_.Prefetch(row), copier_.Prefetch(row + p_.half_rows);
        ptx::WaitForPriorKernels();
      }
      if (issues) {
        CopyHalf(row);
        CopyHalf(row + p_.half_rows);
      }
      __syncwarp();
    }
  }

  __device__ void CopyHalf(int64_t row) {
    ring_.Fill(p_.stage_bytes, [&](uint32_t stage, uint32_t full) { copier_.Copy(stage, full, row); });
  }

  const DecodeParams& p_;
  const Copier& copier_;
  Ring& ring_;
  int lane_;
};

}  // namespace t6::cuda
