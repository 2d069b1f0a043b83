// Decode over fp8 pages on Hopper: its compile-time shape, the layout of shared memory, and the ring as its
// warpgroups read it.
#pragma once

#include "engine/backend/cuda/decode_fp8.cuh"
#include "engine/backend/cuda/decode_producer.cuh"

namespace t6::cuda {

// kPageGroups warpgroups take pages in turn, with all heads; or two divide the heads of every page.
template <int kRankT, int kHeadsT, int kHeadGroupsT, int kPageGroupsT>
struct Fp8Traits : DecodeTraits<kRankT, 64, 64, 12, true> {
  static constexpr int kHeads = kHeadsT;  // of a warpgroup, missing ones included
  static constexpr int kHeadGroups = kHeadGroupsT, kPageGroups = kPageGroupsT;
  static constexpr int kTiles = kHeads / 8;                  // of eight heads, as an accumulator has them
  static constexpr int kGroups = kHeadGroups * kPageGroups;  // warpgroups
  static constexpr int kConsumers = kGroups * 128, kThreads = kConsumers + 128;
  // Of a thread; together what kThreads have at a launch.
  static constexpr int kConsumerRegisters = kGroups == 2 ? 232 : 152;
  static constexpr int kProducerRegisters = kGroups == 2 ? 40 : 56;
  static_assert(kGroups * kConsumerRegisters + kProducerRegisters <=
                (kGroups + 1) * (512 / (kGroups + 1) / 8 * 8));
  static constexpr bool kTileQuery = true;
  static constexpr int kQueryPasses = (kHeads * kHeadGroups / 4 + kGroups * 4 - 1) / (kGroups * 4);
};

// Behind the ring: barriers, the query, each warpgroup's weighted factors, sums. When a segment begins its
// query's factors lie where the weights will, and what is behind them; when it ends, the warpgroups' outputs
// do.
template <class T>
struct Fp8Shared : BlockShared<T> {
  static constexpr int kBarrierBytes = 1024;  // keeps the alignment of the tiles
  static constexpr int kQueryBytes = T::kHeadGroups * T::kHeads * 128;
  // Of a warpgroup: [R][heads][64 tokens] half precision, or [heads][64] floats.
  static constexpr int kWeightBytes = T::kHeads * 128 * (T::kRank > 2 ? T::kRank : 2);

  struct Sums {                  // of a warpgroup
    float4 of_warps[T::kHeads];  // sums, or greatest logits
    float scale[4];
    float2 max_sum[T::kHeads];
  };
  static constexpr int kBytes = kBarrierBytes + kQueryBytes + T::kGroups * (kWeightBytes + sizeof(Sums));
  unsigned char* tiles;

  __device__ Fp8Shared(unsigned char* base, int ring_bytes)
      : BlockShared<T>(base, ring_bytes), tiles(base + ring_bytes + kBarrierBytes) {}
  __device__ unsigned char* Weights(int group) const { return tiles + kQueryBytes + group * kWeightBytes; }
  // A warpgroup's result: [heads][64], where eight neighbours change places by the head, so that fragments'
  // stores are free of bank conflicts.
  __device__ float* Out(int group, int own_head, int number) const {
    return reinterpret_cast<float*>(Weights(group)) + own_head * T::kDim +
           (number ^ ((own_head >> 1 & 3) << 3));
  }
  __device__ Sums& OfGroup(int group) const {
    return reinterpret_cast<Sums*>(tiles + kQueryBytes + T::kGroups * kWeightBytes)[group];
  }
};

// Makes p and shared those of a warpgroup's own part of the ring, with a producer of its own: one is too slow
// for small pages. Where warpgroups divide heads they share the ring.
template <class T>
__device__ void TakeRingPart(int group, DecodeParams& p, Fp8Shared<T>& shared) {
  if (T::kHeadGroups > 1) return;
  p.n_stages /= T::kPageGroups;
  p.first_in_flight = max(p.first_in_flight / T::kPageGroups, 2);
  p.max_in_flight = max(p.max_in_flight / T::kPageGroups, 2);
  shared.ring_address += group * p.n_stages * p.stage_bytes;
  shared.barrier_address += group * p.n_stages * 8;
}

// The producer's side of it: its warpgroup's pages of the block's.
template <class T>
class Fp8StageWriter : public StageWriter<T> {
 public:
  __device__ Fp8StageWriter(const DecodeParams& p, const Fp8Shared<T>& shared, int group)
      : StageWriter<T>(p, shared), group_(group) {}

  template <typename Copy>
  __device__ void Fill(int bytes, Copy copy) {
    const int page = n_halves_++ / 2;
    if (T::kPageGroups > 1 && page % T::kPageGroups != group_) return;
    StageWriter<T>::Fill(bytes, copy);
  }

 private:
  int group_, n_halves_ = 0;
};

// As a warp of a warpgroup sees it; see StageReader.
template <class T>
class Fp8StageReader {
 public:
  __device__ Fp8StageReader(const DecodeParams& p, const Fp8Shared<T>& shared, int lane)
      : p_(p), shared_(shared), lane_(lane) {}

  // The address of the next half of a page, when it is there.
  __device__ uint32_t Next() {
    ptx::BarrierWait(shared_.Full(at_.stage), at_.parity);
    return shared_.ring_address + at_.stage * p_.stage_bytes;
  }
  // Gives it back, as soon as registers hold all of it.
  __device__ void Release() {
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(shared_.Empty(at_.stage));
    at_.Advance(p_.n_stages);
  }

 private:
  const DecodeParams& p_;
  const Fp8Shared<T>& shared_;
  int lane_;
  RingPosition at_;
};

}  // namespace t6::cuda
