// The prefill kernel of sm_90a for d = 64: a producer warp, and three warpgroups of 64 query rows each
// against blocks of 128 tokens of one head. The scores of the next block are multiplied while the values of
// the one before still are, and the softmax of a warpgroup runs beside the products of the others.
// docs/prefill_kernels.md draws it and says what was measured.
#pragma once

#include "engine/backend/cuda/decode_params.cuh"
#include "engine/backend/cuda/prefill_attention.h"
#include "engine/backend/cuda/prefill_softmax.cuh"
#include "engine/backend/cuda/prefill_wgmma.cuh"

namespace t6::cuda {

struct PrefillTraits {
  static constexpr int kDim = 64;
  static constexpr int kGroups = kPrefillTileRows / 64;  // consumer warpgroups
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kTokens = kPrefillBlockTokens;
  static constexpr int kStages = 4;  // of keys, and of values
  static constexpr int kQueryBytes = kPrefillTileRows * 128, kBlockBytes = kTokens * 128;
};

struct PrefillShared {
  using T = PrefillTraits;
  static constexpr int kKeysOffset = 2 * T::kQueryBytes;
  static constexpr int kValuesOffset = kKeysOffset + T::kStages * T::kBlockBytes;
  static constexpr int kBarrierOffset = kValuesOffset + T::kStages * T::kBlockBytes;
  static constexpr int kTaskOffset = kBarrierOffset + (4 * T::kStages + 4) * 8;
  static constexpr int kBytes = kTaskOffset + 16;

  uint32_t base;
  volatile int* task;  // [2]

  __device__ explicit PrefillShared(unsigned char* memory)
      : base(ptx::SharedAddress(memory)), task(reinterpret_cast<int*>(memory + kTaskOffset)) {}
  __device__ uint32_t Query(int slot) const { return base + slot * T::kQueryBytes; }
  __device__ uint32_t Keys(int i) const { return base + kKeysOffset + i * T::kBlockBytes; }
  __device__ uint32_t Values(int i) const { return base + kValuesOffset + i * T::kBlockBytes; }
  __device__ uint32_t Barrier(int i) const { return base + kBarrierOffset + i * 8; }
  __device__ uint32_t KeysFull(int i) const { return Barrier(i); }
  __device__ uint32_t KeysEmpty(int i) const { return Barrier(T::kStages + i); }
  __device__ uint32_t ValuesFull(int i) const { return Barrier(2 * T::kStages + i); }
  __device__ uint32_t ValuesEmpty(int i) const { return Barrier(3 * T::kStages + i); }
  __device__ uint32_t QueryFull(int slot) const { return Barrier(4 * T::kStages + slot); }
  __device__ uint32_t QueryEmpty(int slot) const { return Barrier(4 * T::kStages + 2 + slot); }
};

// Sections of heads, so that keys and values of a section stay in L2; in a section the longest tiles first.
struct PrefillTask {
  PrefillTile tile;
  int head;      // of the pass
  int n_blocks;  // of tokens that its last row sees

  __device__ PrefillTask(const PrefillParams& p, int index) {
    const int of_section = p.n_tiles * p.section_heads, section = index / of_section;
    const int first = section * p.section_heads, heads = min(p.section_heads, p.n_heads - first);
    const int rest = index - section * of_section;
    tile = p.tiles[rest / heads];
    head = first + rest % heads;
    n_blocks = (tile.first_position + tile.n_rows + kPrefillBlockTokens - 1) / kPrefillBlockTokens;
  }
};

#if T6_PTX_HAS_SM90

// One thread: draws tasks and copies what they need, the last block of tokens first.
__device__ void ProducePrefill(const PrefillParams& p, const PrefillMaps& maps, const PrefillShared& shared) {
  using T = PrefillTraits;
  const uint64_t policy = ptx::EvictNormalPolicy();
  RingPosition at;
  ptx::WaitForPriorKernels();
  for (int n = 0;; ++n) {
    const int slot = n & 1, index = atomicAdd(p.counter, 1);
    ptx::BarrierWaitPatiently(shared.QueryEmpty(slot), ((n >> 1) & 1) ^ 1);
    const bool exists = index < p.n_tiles * p.n_heads;
    shared.task[slot] = exists ? index : -1;
    if (!exists) {
      ptx::BarrierArrive(shared.QueryFull(slot));
      return;
    }
    const PrefillTask task(p, index);
    ptx::BarrierExpectBytes(shared.QueryFull(slot), T::kQueryBytes);
    ptx::CopyBox(shared.Query(slot), &maps.query, 0,
                 (p.first_head + task.head) * p.query_rows + task.tile.row, shared.QueryFull(slot), policy);
    const int row = task.head * p.n_scratch_tokens + task.tile.scratch_token;
    for (int block = task.n_blocks - 1; block >= 0; --block) {
      ptx::BarrierWaitPatiently(shared.KeysEmpty(at.stage), at.parity ^ 1);
      ptx::BarrierExpectBytes(shared.KeysFull(at.stage), T::kBlockBytes);
      ptx::CopyBox(shared.Keys(at.stage), &maps.keys, 0, row + block * T::kTokens, shared.KeysFull(at.stage),
                   policy);
      ptx::BarrierWaitPatiently(shared.ValuesEmpty(at.stage), at.parity ^ 1);
      ptx::BarrierExpectBytes(shared.ValuesFull(at.stage), T::kBlockBytes);
      ptx::CopyBox(shared.Values(at.stage), &maps.values, 0, row + block * T::kTokens,
                   shared.ValuesFull(at.stage), policy);
      at.Advance(T::kStages);
    }
  }
}

// A warpgroup's 64 rows of a tile. A lane has rows l / 4 and l / 4 + 8 of its warp's 16.
class PrefillConsumer {
  using T = PrefillTraits;

 public:
  __device__ PrefillConsumer(const PrefillParams& p, const PrefillShared& shared, int group, int thread)
      : p_(p), shared_(shared), group_(group), warp_(thread / 32), lane_(thread % 32) {}

  __device__ void Run() {
    if (group_ == T::kGroups - 1) PassTurn();
    for (int n = 0;; ++n) {
      const int slot = n & 1;
      ptx::BarrierWait(shared_.QueryFull(slot), (n >> 1) & 1);
      const int index = shared_.task[slot];
      if (index < 0) return;
      const PrefillTask task(p_, index);
      Attend(task, slot);
      if (group_ * 64 < task.tile.n_rows) Finish(task);
    }
  }

 private:
  __device__ void TakeTurn() { ptx::NamedBarrier(1 + group_, 256); }
  __device__ void PassTurn() { ptx::NamedBarrierArrive(1 + (group_ + 1) % T::kGroups, 256); }
  __device__ void Arrive(uint32_t barrier) {
    if (lane_ == 0) ptx::BarrierArrive(barrier);
  }

  __device__ void Attend(const PrefillTask& task, int slot) {
    const int first = task.tile.first_position + group_ * 64;  // position of this warpgroup's first row
    const bool exists = group_ * 64 < task.tile.n_rows;
    const int n_mine = exists ? min(task.n_blocks, (first + 63) / T::kTokens + 1) : 0;
    for (int block = task.n_blocks - 1; block >= n_mine; --block) Skip();
#pragma unroll
    for (int i = 0; i < 32; ++i) out_[i] = 0.0f;
    if (n_mine == 0) {
      Arrive(shared_.QueryEmpty(slot));
      return;
    }
    query_ = shared_.Query(slot) + group_ * 64 * 128;
    const uint64_t query = wgmma::Tile(query_);
    ptx::BarrierWait(shared_.KeysFull(at_.stage), at_.parity);
    TakeTurn();
    wgmma::Fence();
    MultiplyKeys(query, at_.stage);
    wgmma::Commit();
    PassTurn();
    wgmma::Wait<0>();
    wgmma::Settle(score_);
    Arrive(shared_.KeysEmpty(at_.stage));
    Mask((n_mine - 1) * T::kTokens, first);
    float factor[2], more[2];
    rows_.MoveBase(score_, true, factor);
    rows_.Weigh(score_, more);
    rows_.sum[0] = more[0], rows_.sum[1] = more[1];
    PackWeights(score_, weight_);
    for (int block = n_mine - 2; block >= 0; --block) {
      const RingPosition before = at_;
      at_.Advance(T::kStages);
      ptx::BarrierWait(shared_.KeysFull(at_.stage), at_.parity);
      TakeTurn();
      wgmma::Fence();
      MultiplyKeys(query, at_.stage);
      wgmma::Commit();
      ptx::BarrierWait(shared_.ValuesFull(before.stage), before.parity);
      wgmma::Fence();
      MultiplyValues(before.stage);
      wgmma::Commit();
      PassTurn();
      wgmma::Wait<1>();
      wgmma::Settle(score_);
      const bool rescales = Weigh(block * T::kTokens, first, factor);
      Arrive(shared_.KeysEmpty(at_.stage));
      wgmma::Wait<0>();
      SettleValues();
      Arrive(shared_.ValuesEmpty(before.stage));
      if (rescales) Rescale(out_, factor);
      PackWeights(score_, weight_);
    }
    Arrive(shared_.QueryEmpty(slot));
    ptx::BarrierWait(shared_.ValuesFull(at_.stage), at_.parity);
    wgmma::Fence();
    MultiplyValues(at_.stage);
    wgmma::Commit();
    wgmma::Wait<0>();
    SettleValues();
    Arrive(shared_.ValuesEmpty(at_.stage));
    at_.Advance(T::kStages);
  }

  // A block that none of this warpgroup's rows sees.
  __device__ void Skip() {
    ptx::BarrierWait(shared_.KeysFull(at_.stage), at_.parity);
    Arrive(shared_.KeysEmpty(at_.stage));
    TakeTurn();
    PassTurn();
    ptx::BarrierWait(shared_.ValuesFull(at_.stage), at_.parity);
    Arrive(shared_.ValuesEmpty(at_.stage));
    at_.Advance(T::kStages);
  }

  __device__ void MultiplyKeys(uint64_t query, int stage) {
    const uint64_t keys = wgmma::Tile(shared_.Keys(stage));
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma::MmaShared<0, 0>(score_, query + step * wgmma::kColumnStep, keys + step * wgmma::kColumnStep,
                             step > 0);
    }
  }
  __device__ void MultiplyValues(int stage) {
    const uint64_t values = wgmma::Tile(shared_.Values(stage));
#pragma unroll
    for (int step = 0; step < T::kTokens / 16; ++step) {
      wgmma::MmaRegisters<1>(out_, weight_[step], values + step * wgmma::kRowStep, 1);
    }
  }
  __device__ void SettleValues() {
    wgmma::Settle(out_);
#pragma unroll
    for (int step = 0; step < T::kTokens / 16; ++step) wgmma::Settle(weight_[step]);
  }

  // Scores of the block of tokens from `token` on that a row must not see become -inf.
  __device__ void Mask(int token, int first) {
    const int last = first + warp_ * 16 + (lane_ >> 2) - token - (lane_ & 3) * 2;
    MaskScores(score_, last, last + 8);
  }

  // Scores become weights; true: and the base moved, with factors for what was added before. That the sums
  // decide here also keeps the exponentials in front of the wait for the products that they run beside.
  __device__ bool Weigh(int token, int first, float (&factor)[2]) {
    const bool masks = token + T::kTokens > first;
    if (masks) Mask(token, first);
    float more[2];
    rows_.Weigh(score_, more);
    const bool moves = __any_sync(~0u, SoftmaxRows::IsTooMuch(more));
    if (moves) {
      uint32_t query[4][4];
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        ptx::LoadMatrices(query[step],
                          query_ + TokenRows<64>::Offset(warp_ * 16 + (lane_ & 15), 2 * step + (lane_ >> 4)));
      }
      MultiplyAgain(score_, query, shared_.Keys(at_.stage), lane_);
      if (masks) Mask(token, first);
      rows_.MoveBase(score_, false, factor);
      rows_.Weigh(score_, more);
    }
    rows_.sum[0] += more[0], rows_.sum[1] += more[1];
    return moves;
  }

  __device__ void Finish(const PrefillTask& task) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float scale = 1.0f / (rows_.Total(k) * p_.rank);
      if (p_.head_norm_weight != nullptr) {
        float square = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float x = out_[4 * i + 2 * k] * scale, y = out_[4 * i + 2 * k + 1] * scale;
          square += x * x + y * y;
        }
        square += __shfl_xor_sync(~0u, square, 1);
        square += __shfl_xor_sync(~0u, square, 2);
        scale *= rsqrtf(square / T::kDim + p_.head_norm_eps);
      }
      const int row = group_ * 64 + warp_ * 16 + (lane_ >> 2) + 8 * k;
      if (row >= task.tile.n_rows) continue;
      const int64_t at =
          (static_cast<int64_t>(task.tile.row + row) * p_.total_heads + p_.first_head + task.head) * T::kDim +
          (lane_ & 3) * 2;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float x = out_[4 * i + 2 * k] * scale, y = out_[4 * i + 2 * k + 1] * scale;
        if (p_.head_norm_weight != nullptr) {
          x *= p_.head_norm_weight[8 * i + (lane_ & 3) * 2],
              y *= p_.head_norm_weight[8 * i + (lane_ & 3) * 2 + 1];
        }
        if (p_.out_is_bf16) {
          *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p_.out) + at + 8 * i) =
              ptx::PackBf16(x, y);
        } else {
          *reinterpret_cast<float2*>(static_cast<float*>(p_.out) + at + 8 * i) = make_float2(x, y);
        }
      }
    }
  }

  const PrefillParams& p_;
  const PrefillShared& shared_;
  const int group_, warp_, lane_;
  RingPosition at_;
  float score_[T::kTokens / 2];
  uint32_t weight_[T::kTokens / 16][4];
  float out_[32];
  SoftmaxRows rows_;
  uint32_t query_;  // of the task, in shared memory
};

#endif

__global__ void __launch_bounds__(PrefillTraits::kThreads, 1)
    PrefillAttention(const __grid_constant__ PrefillParams p, const __grid_constant__ PrefillMaps maps) {
#if T6_PTX_HAS_SM90
  using T = PrefillTraits;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const PrefillShared shared(shared_memory);
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // uniform, and known to be
  constexpr int kConsumerWarps = T::kGroups * 4;
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      ptx::BarrierInit(shared.KeysFull(i), 1), ptx::BarrierInit(shared.ValuesFull(i), 1);
      ptx::BarrierInit(shared.KeysEmpty(i), kConsumerWarps);
      ptx::BarrierInit(shared.ValuesEmpty(i), kConsumerWarps);
    }
    for (int slot = 0; slot < 2; ++slot) {
      ptx::BarrierInit(shared.QueryFull(slot), 1);
      ptx::BarrierInit(shared.QueryEmpty(slot), kConsumerWarps);
    }
    ptx::BarrierInitFence();
    ptx::PrefetchTensorMap(&maps.query), ptx::PrefetchTensorMap(&maps.keys),
        ptx::PrefetchTensorMap(&maps.values);
  }
  __syncthreads();
  ptx::LetDependentsLaunch();
  if (group == T::kGroups) {
    wgmma::GiveRegisters<32>();
    if (threadIdx.x == T::kGroups * 128) ProducePrefill(p, maps, shared);
  } else {
    wgmma::TakeRegisters<160>();
    PrefillConsumer(p, shared, group, threadIdx.x % 128).Run();
  }
#endif
}

}  // namespace t6::cuda
