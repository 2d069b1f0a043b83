// Decode over fp8 pages on Hopper: its compile-time shape, the layout of shared memory, and the ring as its
// warpgroups read it.
#pragma once

#include "engine/backend/cuda/decode_fp8.cuh"

namespace t6::cuda {

// kHeadGroups 1: the warpgroups take pages in turn. 2: each takes half of the heads of every page.
template <int kRankT, int kHeadsT, int kHeadGroupsT>
struct Fp8Traits : DecodeTraits<kRankT, 64, 64, 12, true> {
  static constexpr int kHeads = kHeadsT;  // of a warpgroup, missing ones included
  static constexpr int kHeadGroups = kHeadGroupsT;
  static constexpr int kTiles = kHeads / 8;  // of eight heads, as an accumulator has them
  static constexpr int kGroups = 2;          // warpgroups
  static constexpr int kConsumers = kGroups * 128;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr bool kTileQuery = true;
};

// Behind the ring: barriers, the query, each warpgroup's weighted factors, sums. When a segment begins its
// query's factors lie where the weights will, and what is behind them; when it ends, half of each warpgroup's
// output does.
template <class T>
struct Fp8Shared : BlockShared<T> {
  static constexpr int kBarrierBytes = 1024;  // keeps the alignment of the tiles
  static constexpr int kQueryBytes = T::kHeadGroups * T::kHeads * 128;
  static constexpr int kWeightBytes = T::kRank * T::kHeads * 128;  // of a warpgroup: [R][heads][64 tokens]

  struct Sums {                   // of a warpgroup
    float of_warp[4][T::kHeads];  // a sum, or a greatest logit
    float scale[4];
    float2 max_sum[T::kHeads];
  };
  static constexpr int kBytes = kBarrierBytes + kQueryBytes + T::kGroups * (kWeightBytes + sizeof(Sums));
  unsigned char* tiles;

  __device__ Fp8Shared(unsigned char* base, int ring_bytes)
      : BlockShared<T>(base, ring_bytes), tiles(base + ring_bytes + kBarrierBytes) {}
  __device__ unsigned char* Weights(int group) const { return tiles + kQueryBytes + group * kWeightBytes; }
  __device__ Sums& OfGroup(int group) const {
    return reinterpret_cast<Sums*>(tiles + kQueryBytes + T::kGroups * kWeightBytes)[group];
  }
};

// The ring as a warp of a warpgroup sees it; see StageReader.
template <class T>
class Fp8Ring {
 public:
  __device__ Fp8Ring(const DecodeParams& p, const Fp8Shared<T>& shared, int lane)
      : p_(p), shared_(shared), lane_(lane) {}

  // The address of the next half of a page, when it is there. The one before goes back.
  __device__ uint32_t Next() {
    ptx::BarrierWait(shared_.Full(at_.stage), at_.parity);
    Release();
    release_ = at_.stage;
    at_.Advance(p_.n_stages);
    return shared_.ring_address + release_ * p_.stage_bytes;
  }
  __device__ void Release() {
    __syncwarp();
    if (release_ >= 0 && lane_ == 0) ptx::BarrierArrive(shared_.Empty(release_));
    release_ = -1;
  }
  // A page of the other warpgroup's.
  __device__ void SkipPage() {
    at_.stage += 2;
    if (at_.stage >= p_.n_stages) at_.stage -= p_.n_stages, at_.parity ^= 1;
  }

 private:
  const DecodeParams& p_;
  const Fp8Shared<T>& shared_;
  int lane_;
  RingPosition at_;
  int release_ = -1;
};

}  // namespace t6::cuda
