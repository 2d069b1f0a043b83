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

// What consumers know of a task, in shared memory.
struct PrefillTask {
  int32_t row, n_rows;
  int32_t head;  // of the pass
  int32_t first_position;
  int32_t n_blocks;  // of tokens that its last row sees; 0: there are no more tasks

  static constexpr int kBytes = 32;
  __device__ void Write(uint32_t to) const {
    ptx::StoreShared16Bytes(to, {static_cast<uint32_t>(row), static_cast<uint32_t>(n_rows),
                                 static_cast<uint32_t>(head), static_cast<uint32_t>(first_position)});
    ptx::StoreShared32(to + 16, n_blocks);
  }
  __device__ static PrefillTask Read(uint32_t from) {
    const uint4 x = ptx::LoadShared(from);
    return {static_cast<int32_t>(x.x), static_cast<int32_t>(x.y), static_cast<int32_t>(x.z),
            static_cast<int32_t>(x.w), static_cast<int32_t>(ptx::LoadShared32(from + 16))};
  }
};

struct PrefillShared {
  using T = PrefillTraits;
  // Two whose queries are there or under way, and those before, whose output may not be written yet.
  static constexpr int kTasks = 4;
  static constexpr int kKeysOffset = 2 * T::kQueryBytes;
  static constexpr int kValuesOffset = kKeysOffset + T::kStages * T::kBlockBytes;
  static constexpr int kBarrierOffset = kValuesOffset + T::kStages * T::kBlockBytes;
  static constexpr int kTaskOffset = kBarrierOffset + (4 * T::kStages + 4) * 8;
  static_assert(kTaskOffset % 16 == 0);
  static constexpr int kBytes = kTaskOffset + kTasks * PrefillTask::kBytes;

  uint32_t base;

  __device__ explicit PrefillShared(unsigned char* memory) : base(ptx::SharedAddress(memory)) {}
  // The n-th of the block's tasks.
  __device__ uint32_t Task(int n) const {
    return base + kTaskOffset + (n & (kTasks - 1)) * PrefillTask::kBytes;
  }
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

#if T6_PTX_HAS_SM90

// One thread: draws tasks and copies what they need, the last block of tokens first. Sections of heads, so
// that keys and values of a section stay in L2; in a section the longest tiles first.
class PrefillProducer {
  using T = PrefillTraits;

 public:
  __device__ PrefillProducer(const PrefillParams& p, const PrefillMaps& maps, const PrefillShared& shared)
      : p_(p), maps_(maps), shared_(shared), policy_(ptx::EvictNormalPolicy()) {}

  // The first task is known without the counter, and tiles are older than the kernel in front.
  __device__ void Run() {
    Drawn task = Draw(blockIdx.x);
    ptx::WaitForPriorKernels();
    for (int n = 0;; ++n) {
      const int next = gridDim.x + atomicAdd(p_.counter, 1);  // comes while the task's copies are asked for
      const int slot = n & 1;
      ptx::BarrierWaitPatiently(shared_.QueryEmpty(slot), ((n >> 1) & 1) ^ 1);
      if (!task.exists) {
        PrefillTask{}.Write(shared_.Task(n));
        ptx::BarrierArrive(shared_.QueryFull(slot));
        return;
      }
      Copy(task, n);
      task = Draw(next);
    }
  }

 private:
  struct Drawn {
    PrefillTile tile;
    int head;
    bool exists;
  };
  __device__ Drawn Draw(int index) const {
    if (index >= p_.n_tiles * p_.n_heads) return {{}, 0, false};
    const int of_section = p_.n_tiles * p_.section_heads, section = index / of_section;
    const int first = section * p_.section_heads, heads = min(p_.section_heads, p_.n_heads - first);
    const int rest = index - section * of_section;
    return {p_.tiles[rest / heads], first + rest % heads, true};
  }
  __device__ void Copy(const Drawn& task, int n) {
    const PrefillTile& tile = task.tile;
    const int head = task.head;
    const int n_blocks = (tile.first_position + tile.n_rows + T::kTokens - 1) / T::kTokens;
    PrefillTask{tile.row, tile.n_rows, head, tile.first_position, n_blocks}.Write(shared_.Task(n));
    const uint32_t full = shared_.QueryFull(n & 1);
    ptx::BarrierExpectBytes(full, T::kQueryBytes);
    ptx::CopyBox(shared_.Query(n & 1), &maps_.query, 0, (p_.first_head + head) * p_.query_rows + tile.row,
                 full, policy_);
    const int row = head * p_.n_scratch_tokens + tile.scratch_token;
    for (int block = n_blocks - 1; block >= 0; --block) {
      CopyBlock(&maps_.keys, row + block * T::kTokens, shared_.Keys(at_.stage), shared_.KeysFull(at_.stage),
                shared_.KeysEmpty(at_.stage));
      CopyBlock(&maps_.values, row + block * T::kTokens, shared_.Values(at_.stage),
                shared_.ValuesFull(at_.stage), shared_.ValuesEmpty(at_.stage));
      at_.Advance(T::kStages);
    }
  }
  __device__ void CopyBlock(const CUtensorMap* map, int row, uint32_t to, uint32_t full, uint32_t empty) {
    ptx::BarrierWaitPatiently(empty, at_.parity ^ 1);
    ptx::BarrierExpectBytes(full, T::kBlockBytes);
    ptx::CopyBox(to, map, 0, row, full, policy_);
  }

  const PrefillParams& p_;
  const PrefillMaps& maps_;
  const PrefillShared& shared_;
  const uint64_t policy_;
  RingPosition at_;
};

// A warpgroup's 64 rows of a tile. A lane has rows l / 4 and l / 4 + 8 of its warp's 16.
class PrefillConsumer {
  using T = PrefillTraits;

 public:
  __device__ PrefillConsumer(const PrefillParams& p, const PrefillShared& shared, int group, int thread)
      : p_(p), shared_(shared), group_(group), warp_(thread / 32), lane_(thread % 32) {}

  __device__ void Run() {
    if (group_ == T::kGroups - 1) PassTurn();
    bool has_last = false;  // the task before still wants its last block's values
    for (int n = 0;; ++n) {
      ptx::BarrierWait(shared_.QueryFull(n & 1), (n >> 1) & 1);
      const PrefillTask task = PrefillTask::Read(shared_.Task(n));
      const int first = task.first_position + group_ * 64;  // position of this warpgroup's first row
      const bool exists = group_ * 64 < task.n_rows;
      const int n_mine = exists ? min(task.n_blocks, (first + 63) / T::kTokens + 1) : 0;
      if (has_last && n_mine == 0) {
        AddLast();
        Finish(n - 1, rows_.Total(0), rows_.Total(1));
        has_last = false;
      }
      if (task.n_blocks == 0) return;
      for (int block = task.n_blocks - 1; block >= n_mine; --block) Skip();
      if (n_mine > 0) {
        if (has_last) {
          Begin<true>(n, (n_mine - 1) * T::kTokens, first);
        } else {
          Begin<false>(n, (n_mine - 1) * T::kTokens, first);
        }
        for (int block = n_mine - 2; block >= 0; --block) Attend(block * T::kTokens, first);
        last_ = at_, has_last = true;
        at_.Advance(T::kStages);
      }
      Arrive(shared_.QueryEmpty(n & 1));
    }
  }

 private:
  __device__ void TakeTurn() { ptx::NamedBarrier(1 + group_, 256); }
  __device__ void PassTurn() { ptx::NamedBarrierArrive(1 + (group_ + 1) % T::kGroups, 256); }
  __device__ void Arrive(uint32_t barrier) {
    if (lane_ == 0) ptx::BarrierArrive(barrier);
  }

  // The first block of the n-th task, tokens from `token` on. Where the task before is still to end, its last
  // values are multiplied beside: a task of few blocks would else be mostly ends.
  template <bool kEndsOther>
  __device__ void Begin(int n, int token, int first) {
    query_ = shared_.Query(n & 1) + group_ * 64 * 128;
    ptx::BarrierWait(shared_.KeysFull(at_.stage), at_.parity);
    TakeTurn();
    wgmma::Fence();
    MultiplyKeys();
    wgmma::Commit();
    if constexpr (kEndsOther) {
      ptx::BarrierWait(shared_.ValuesFull(last_.stage), last_.parity);
      wgmma::Fence();
      MultiplyValues(last_.stage);
      wgmma::Commit();
    }
    PassTurn();
    wgmma::Wait<kEndsOther ? 1 : 0>();
    wgmma::Settle(score_);
    const float totals[2] = {kEndsOther ? rows_.Total(0) : 0.0f, kEndsOther ? rows_.Total(1) : 0.0f};
    Mask(token, first);
    float factor[2], more[2];
    rows_.MoveBase(score_, true, factor);
    rows_.Weigh(score_, more);
    rows_.sum[0] = more[0], rows_.sum[1] = more[1];
    Arrive(shared_.KeysEmpty(at_.stage));
    if constexpr (kEndsOther) {
      wgmma::Wait<0>();
      SettleValues();
      Arrive(shared_.ValuesEmpty(last_.stage));
      Finish(n - 1, totals[0], totals[1]);
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) out_[i] = 0.0f;
    PackWeights(score_, weight_);
  }
  // The values of the block before, and the next one's keys.
  __device__ void Attend(int token, int first) {
    const RingPosition before = at_;
    at_.Advance(T::kStages);
    ptx::BarrierWait(shared_.KeysFull(at_.stage), at_.parity);
    TakeTurn();
    wgmma::Fence();
    MultiplyKeys();
    wgmma::Commit();
    ptx::BarrierWait(shared_.ValuesFull(before.stage), before.parity);
    wgmma::Fence();
    MultiplyValues(before.stage);
    wgmma::Commit();
    PassTurn();
    wgmma::Wait<1>();
    wgmma::Settle(score_);
    float factor[2];
    const bool rescales = Weigh(token, first, factor);
    Arrive(shared_.KeysEmpty(at_.stage));
    wgmma::Wait<0>();
    SettleValues();
    Arrive(shared_.ValuesEmpty(before.stage));
    if (rescales) Rescale(out_, factor);
    PackWeights(score_, weight_);
  }
  // The values of a task's last block, where no other task follows.
  __device__ void AddLast() {
    ptx::BarrierWait(shared_.ValuesFull(last_.stage), last_.parity);
    wgmma::Fence();
    MultiplyValues(last_.stage);
    wgmma::Commit();
    wgmma::Wait<0>();
    SettleValues();
    Arrive(shared_.ValuesEmpty(last_.stage));
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

  __device__ void MultiplyKeys() {
    const uint64_t query = wgmma::Tile(query_), keys = wgmma::Tile(shared_.Keys(at_.stage));
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
    if (masks) {
      Mask(token, first);
      rows_.BaseEmptyRows(score_);  // the first block may have lain behind a row
    }
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

  // The n-th task's output, whose rows' weights add up to the totals.
  __device__ void Finish(int n, float total, float total_of_second) {
    const PrefillTask task = PrefillTask::Read(shared_.Task(n));
    const int column = (lane_ & 3) * 2;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float scale = 1.0f / ((k == 0 ? total : total_of_second) * p_.rank);
#pragma unroll
      for (int i = 0; i < 8; ++i) out_[4 * i + 2 * k] *= scale, out_[4 * i + 2 * k + 1] *= scale;
      if (p_.head_norm_weight != nullptr) Norm(k, column);
      const int row = group_ * 64 + warp_ * 16 + (lane_ >> 2) + 8 * k;
      if (row >= task.n_rows) continue;
      const int64_t at =
          (static_cast<int64_t>(task.row + row) * p_.total_heads + p_.first_head + task.head) * T::kDim +
          column;
      if (p_.out_is_bf16) {
        auto* to = static_cast<__nv_bfloat16*>(p_.out) + at;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          *reinterpret_cast<uint32_t*>(to + 8 * i) =
              ptx::PackBf16(out_[4 * i + 2 * k], out_[4 * i + 2 * k + 1]);
        }
      } else {
        auto* to = static_cast<float*>(p_.out) + at;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          *reinterpret_cast<float2*>(to + 8 * i) = make_float2(out_[4 * i + 2 * k], out_[4 * i + 2 * k + 1]);
        }
      }
    }
  }
  __device__ void Norm(int k, int column) {
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float x = out_[4 * i + 2 * k], y = out_[4 * i + 2 * k + 1];
      square += x * x + y * y;
    }
    square += __shfl_xor_sync(~0u, square, 1);
    square += __shfl_xor_sync(~0u, square, 2);
    const float scale = rsqrtf(square / T::kDim + p_.head_norm_eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float* weight = p_.head_norm_weight + 8 * i + column;
      out_[4 * i + 2 * k] *= scale * weight[0], out_[4 * i + 2 * k + 1] *= scale * weight[1];
    }
  }

  const PrefillParams& p_;
  const PrefillShared& shared_;
  const int group_, warp_, lane_;
  RingPosition at_, last_;
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
    if (threadIdx.x == T::kGroups * 128) PrefillProducer(p, maps, shared).Run();
  } else {
    wgmma::TakeRegisters<160>();
    PrefillConsumer(p, shared, group, threadIdx.x % 128).Run();
  }
#endif
}

}  // namespace t6::cuda
