// Instructions that only the rows kernels use, one function each. Device code of sm_90 only.
#pragma once

#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda::ptx {

// All threads of all blocks of the cluster: what they wrote before, all see behind it.
__device__ inline void ClusterMeet() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// A warp arrives, once, at the same barrier of every block of its cluster. What it has read is read, which is
// all that this says: a release to the cluster would be a fence of the whole device.
template <int kBlocks>
__device__ inline void ArriveInCluster(uint32_t barrier, int lane) {
  if (lane < kBlocks) {
    asm volatile(
        "{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [a];\n}" ::"r"(barrier),
        "r"(lane)
        : "memory");
  }
}
// To the same place of one block of the cluster.
__device__ inline void StoreInCluster(uint32_t address, int block, int x) {
  asm volatile(
      "{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\nst.shared::cluster.u32 [a], %2;\n}" ::"r"(
          address),
      "r"(block), "r"(x)
      : "memory");
}
// A box to the same place of every block of the cluster, each of whose barriers counts it.
template <int kBlocks>
__device__ inline void CopyBoxToCluster(uint32_t shared, const CUtensorMap* map, int32_t column, int32_t row,
                                        uint32_t barrier) {
  if constexpr (kBlocks == 1) {
    CopyBox(shared, map, column, row, barrier);
  } else {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
        "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<uint16_t>((1 << kBlocks) - 1))
        : "memory");
  }
}

// Whether a barrier's phase of this parity is over, or was within a moment: asked for early, the answer is
// there when it is needed.
__device__ inline bool BarrierTryWait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Two 8 x 8 matrices of 16-bit numbers, stored by columns: lanes 0 to 15 give their addresses.
__device__ inline void StoreTwoMatricesTransposed(uint32_t address, uint32_t a, uint32_t b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b)
               : "memory");
}

__device__ inline void StoreShared16(uint32_t address, uint16_t x) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(x) : "memory");
}

}  // namespace t6::cuda::ptx
