// The producer warp of the decode kernel: halves of pages from global memory into the ring of stages.
#pragma once

#include "engine/backend/cuda/decode_params.cuh"

namespace t6::cuda {

// Streams the block's pages, key half then value half. How many halves are asked for and not there yet is
// limited, at first to `first_in_flight`, later to `max_in_flight`: if every block asked for a whole ring at
// once, everyone's first half would come last. All lanes walk; lane 0 issues.
template <class T>
class Producer {
 public:
  __device__ Producer(const DecodeParams& p, const CUtensorMap* whole, const CUtensorMap* rest,
                      const BlockShared<T>& shared, int lane)
      : p_(p),
        whole_(whole),
        rest_(rest),
        shared_(shared),
        lane_(lane),
        policy_(ptx::EvictFirstPolicy()),
        limit_(p.first_in_flight) {}

  __device__ void Run(const DecodeBlock* block) {
    const int begin = block->begin, end = block->end;
    if (begin == end) return;
    const int n_pages = block->n_pages, n_first = min(n_pages, DecodeBlock::kFirstPages);
    const bool holds_newest = block->holds_newest;
    const int32_t id = lane_ < n_first ? block->first_pages[lane_] : 0;
    CopyPages(id, n_first, holds_newest && n_first == n_pages);
    CopySegment(block->page_offset, n_first, n_pages, holds_newest);
    for (int index = begin + 1; index < end; ++index) {
      const DecodeSegment segment = p_.plan.segments[index];
      CopySegment(segment.page_offset, 0, segment.n_pages, segment.holds_newest);
    }
  }

 private:
  static constexpr int kGrowAfter = 8;  // halves that landed, for each one more in flight

  __device__ void CopySegment(int page_offset, int first, int n_pages, bool holds_newest) {
    for (int base = first; base < n_pages; base += 32) {
      const int n = min(32, n_pages - base);
      const int32_t id = lane_ < n ? p_.page_ids[page_offset + base + lane_] : 0;
      CopyPages(id, n, holds_newest && base + n == n_pages);
    }
  }

  // Lane i has the i-th page's id.
  __device__ void CopyPages(int32_t id, int n, bool last_is_newest) {
    for (int i = 0; i < n; ++i) {
      const int64_t row = static_cast<int64_t>(__shfl_sync(~0u, id, i)) * 2 * p_.half_rows;
      if (last_is_newest && i == n - 1) {
        // The kernel in front may still be writing this step's token, but the cache may have the rest by
        // then.
        if (lane_ == 0) PrefetchPage(row);
        ptx::WaitForPriorKernels();
      }
      if (lane_ == 0) {
        CopyHalf(row);
        CopyHalf(row + p_.half_rows);
      }
      __syncwarp();
    }
  }

  __device__ void CopyHalf(int64_t row) {
    if (in_flight_ == limit_) {
      ptx::BarrierWait(shared_.Full(landing_.stage), landing_.parity);
      landing_.Advance(p_.n_stages);
      --in_flight_;
      if (++landed_ % kGrowAfter == 0 && limit_ < p_.max_in_flight) ++limit_;
    }
    ++in_flight_;
    ptx::BarrierWait(shared_.Empty(at_.stage), at_.parity ^ 1);
    const uint32_t destination = shared_.ring_address + at_.stage * p_.stage_bytes;
    const uint32_t barrier = shared_.Full(at_.stage);
    ptx::BarrierExpectBytes(barrier, p_.half_rows * 128);
    ForEachBox([&](const CUtensorMap* map, int done) {
      ptx::CopyBox(destination + done * 128, map, 0, static_cast<int32_t>(row + done), barrier, policy_);
    });
    at_.Advance(p_.n_stages);
  }

  __device__ void PrefetchPage(int64_t row) {
    for (int half = 0; half < 2; ++half) {
      ForEachBox([&](const CUtensorMap* map, int done) {
        ptx::PrefetchBox(map, 0, static_cast<int32_t>(row + half * p_.half_rows + done));
      });
    }
  }

  // f(map, first row) of the boxes of half a page.
  template <typename F>
  __device__ void ForEachBox(F f) {
    int done = 0;
    for (; done + 256 <= p_.half_rows; done += 256) f(whole_, done);
    if (done < p_.half_rows) f(rest_, done);
  }

  const DecodeParams& p_;
  const CUtensorMap *whole_, *rest_;
  const BlockShared<T>& shared_;
  int lane_;
  uint64_t policy_;
  RingPosition at_, landing_;  // the next to be asked for, and the next to arrive
  int limit_, in_flight_ = 0, landed_ = 0;
};

}  // namespace t6::cuda
