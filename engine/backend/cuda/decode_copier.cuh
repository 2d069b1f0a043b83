// How half a page gets from global memory into a stage, swizzled: by tensor maps on sm_90, where one lane
// asks for a box of rows, or chunk by chunk by a whole warp from sm_80 on.
#pragma once

#include "engine/backend/cuda/decode_params.cuh"

namespace t6::cuda {

#if T6_PTX_HAS_SM90
class TensorMapCopier {
 public:
  static constexpr bool kAllLanes = false;
  static constexpr int kArrivals = 1;  // at a full barrier

  __device__ TensorMapCopier(const DecodeParams& p, const CUtensorMap* whole, const CUtensorMap* rest)
      : half_rows_(p.half_rows), whole_(whole), rest_(rest), policy_(ptx::EvictFirstPolicy()) {}

  // `row`: of the pool's rows of 128 bytes.
  __device__ void Copy(uint32_t stage, uint32_t barrier, int64_t row) const {
    ptx::BarrierExpectBytes(barrier, half_rows_ * 128);
    ForEachBox([&](const CUtensorMap* map, int done) {
      ptx::CopyBox(stage + done * 128, map, 0, static_cast<int32_t>(row + done), barrier, policy_);
    });
  }
  __device__ void Prefetch(int64_t row) const {
    ForEachBox([&](const CUtensorMap* map, int done) {
      ptx::PrefetchBox(map, 0, static_cast<int32_t>(row + done));
    });
  }
  __device__ void Finish() const {}

 private:
  // f(map, first row) of the boxes of half a page.
  template <typename F>
  __device__ void ForEachBox(F f) const {
    int done = 0;
    for (; done + 256 <= half_rows_; done += 256) f(whole_, done);
    if (done < half_rows_) f(rest_, done);
  }

  int half_rows_;
  const CUtensorMap *whole_, *rest_;
  uint64_t policy_;
};
#endif

class ChunkCopier {
 public:
  static constexpr bool kAllLanes = true;
  static constexpr int kArrivals = 32;

  __device__ ChunkCopier(const DecodeParams& p, int lane)
      : pages_(static_cast<const unsigned char*>(p.pages)),
        chunks_(p.half_rows * 8),
        lane_(lane),
        policy_(ptx::EvictFirstPolicy()) {}

  // A lane has one chunk of every fourth row, so that its swizzle alternates between two.
  __device__ void Copy(uint32_t stage, uint32_t barrier, int64_t row) const {
    const unsigned char* from = pages_ + row * 128 + lane_ * 16;
    const int own_row = lane_ >> 3, chunk = lane_ & 7;
    const uint32_t even = stage + own_row * 128 + ((chunk ^ own_row) << 4);
    const uint32_t odd = stage + (own_row + 4) * 128 + ((chunk ^ (own_row + 4)) << 4);
    int done = lane_;
    for (; done + 32 < chunks_; done += 64) {
      const int offset = (done - lane_) * 16;
      ptx::CopyChunk(even + offset, from + offset, policy_);
      ptx::CopyChunk(odd + offset, from + offset + 512, policy_);
    }
    if (done < chunks_) {
      const int offset = (done - lane_) * 16;
      ptx::CopyChunk(even + offset, from + offset, policy_);
    }
    ptx::BarrierArriveWithChunks(barrier);
  }
  __device__ void Prefetch(int64_t /*row*/) const {}
  // No thread may end while its copies are under way.
  __device__ void Finish() const { ptx::WaitForChunks(); }

 private:
  const unsigned char* pages_;
  int chunks_, lane_;
  uint64_t policy_;
};

}  // namespace t6::cuda
