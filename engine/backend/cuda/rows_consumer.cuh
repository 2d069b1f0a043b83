// A consumer warpgroup of the rows kernel: a task's scores, weights and values for its heads. Everything is
// transposed: tokens, then numbers of d, are the 64 rows of a product and query rows its columns, so that
// keys and values are expanded from factors in registers, as the products' left operands, and 8 query rows
// are as efficient a multiple as 64.
#pragma once

#include "engine/backend/cuda/decode_consumer.cuh"
#include "engine/backend/cuda/prefill_wgmma.cuh"
#include "engine/backend/cuda/rows_params.cuh"

namespace t6::cuda {

template <class T>
class RowsConsumer {
 public:
  __device__ RowsConsumer(const RowsParams& p, const RowsShared<T>& shared, int group, int thread)
      : p_(p),
        shared_(shared),
        group_(group),
        first_head_(group * T::kHeads),
        warp_(thread / 32),
        lane_(thread % 32) {
    const int row = lane_ & 7, low = (lane_ >> 3) & 1, high = lane_ >> 4;
    key_offset_ = TokenRows<T::kDim>::Offset(warp_ * 16 + low * 8 + row, high);
    value_token_ = high * 8 + row;
    value_chunk_ = (warp_ * 2 + low) % (T::kDim / 8);
    weights_offset_ = (high * 8 + row) * 128 + (((warp_ * 2 + low) ^ row) << 4);
  }

  __device__ void Run() {
    const int begin = p_.block_begin[blockIdx.x], end = p_.block_begin[blockIdx.x + 1];
    if (group_ == T::kGroups - 1) PassTurn();
    for (int index = begin; index < end; ++index) {
      const RowsTask task = p_.tasks[index];
      Start();
      ptx::BarrierWait(shared_.QueryFull(), (index - begin) & 1);
      uint32_t operands[2][kH][T::kTiles][4];
      RingPosition done = at_;  // of stages that are read and not yet released
      Score<false>(operands);
      PassTurn();
      EndProducts(operands, task.n_pages == 1, &done);
      for (int page = 0; page < task.n_pages; ++page) {
        const int token = task.first_token + page * 64;
        const bool masks = token + 63 > task.first_position;
        if (masks) Mask(task, token);
        Weigh(page == 0, masks ? task.n_tokens - token : 64);
        masks ? Accumulate<true>(operands, task.n_tokens - token) : Accumulate<false>(operands, 64);
        if (page + 1 < task.n_pages) Score<true>(operands);
        PassTurn();
        EndProducts(operands, page + 2 == task.n_pages, &done);
      }
      Finish(task);
    }
  }

 private:
  static constexpr int kTurnBarrier = 1 + T::kGroups;
  static constexpr int kN = T::kRows, kH = T::kHeads, kR = T::kRank;

  __device__ void Start() {
#pragma unroll
    for (int h = 0; h < kH; ++h) {
#pragma unroll
      for (int i = 0; i < kN / 4; ++i) sum_[h][i] = 0.0f;
#pragma unroll
      for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kN / 2; ++i) out_[h][tile][i] = 0.0f;
      }
    }
  }
  // The next half of a page.
  __device__ uint32_t NextStage() {
    ptx::BarrierWait(shared_.Full(at_.stage), at_.parity);
    const uint32_t stage = shared_.Stage(at_.stage);
    at_.Advance(T::kStages);
    return stage;
  }
  __device__ void TakeTurn() {
    if constexpr (T::kTakesTurns) ptx::NamedBarrier(kTurnBarrier + group_, T::kGroups * 128);
  }
  __device__ void PassTurn() {
    if constexpr (T::kTakesTurns) ptx::NamedBarrierArrive(kTurnBarrier + (group_ ^ 1), T::kGroups * 128);
  }
  // Waits for all products and gives back what they read.
  __device__ void EndProducts(uint32_t (&operands)[2][kH][T::kTiles][4], bool ends_query,
                              RingPosition* done) {
    wgmma::Wait<0>();
#pragma unroll
    for (int h = 0; h < kH; ++h) {
      wgmma::Settle(score_[h]);
#pragma unroll
      for (int tile = 0; tile < T::kTiles; ++tile) {
        if constexpr (!T::kFactored) {
          wgmma::Settle(operands[0][h][tile]), wgmma::Settle(operands[1][h][tile]);
        }
        wgmma::Settle(out_[h][tile]);
      }
    }
    if (ends_query && lane_ == 0) ptx::BarrierArrive(shared_.QueryEmpty());
    while (done->stage != at_.stage) {
      if (lane_ == 0) ptx::BarrierArrive(shared_.Empty(done->stage));
      done->Advance(T::kStages);
    }
  }
  __device__ void Barrier() { ptx::NamedBarrier(1 + group_, 128); }

  // One rank of A of one head: 64 tokens.
  __device__ uint32_t HeadRow(uint32_t stage, int head, int rank) const {
    return stage + kR * T::kRankBytes + rank * T::kHeadBytes + (first_head_ + head) * 128;
  }
  __device__ int HeadSwizzle(int head) const { return (first_head_ + head) & 7; }

  // score = K Q^T, [64 tokens][kN], on its way. kContinues: behind products of Accumulate, in the same turn.
  template <bool kContinues>
  __device__ void Score(uint32_t (&operands)[2][kH][T::kTiles][4]) {
    const uint32_t stage = NextStage();
    if constexpr (T::kFactored) {
      ScoreFactored(stage);
    } else {
      ScoreExpanded<kContinues>(stage, operands);
    }
  }
  template <bool kContinues>
  __device__ void ScoreExpanded(uint32_t stage, uint32_t (&operands)[2][kH][T::kTiles][4]) {
    uint32_t a[kH][kR][2];  // of tokens l / 4 and l / 4 + 8 of the warp's 16, twice each
#pragma unroll
    for (int h = 0; h < kH; ++h) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const uint32_t row = HeadRow(stage, h, r) + (lane_ >> 2) * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t x = ptx::LoadShared16(row + (((warp_ * 2 + i) ^ HeadSwizzle(h)) << 4));
          a[h][r][i] = x | x << 16;
        }
      }
    }
    uint32_t factors[2][kR][4];
    const auto load = [&](int step) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        ptx::LoadMatrices(factors[step & 1][r],
                          TokenRows<T::kDim>::Step(stage + key_offset_ + r * T::kRankBytes, step));
      }
    };
    load(0);
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) {
      uint32_t(&k)[kH][T::kTiles][4] = operands[step & 1];  // the first tile of each
      const uint32_t(&b)[kR][4] = factors[step & 1];
      if (step + 1 < T::kSteps) load(step + 1);  // on its way while this step is expanded and multiplied
      if (kContinues || step >= 2) {
        wgmma::Wait<1>();
#pragma unroll
        for (int h = 0; h < kH; ++h) {
#pragma unroll
          for (int tile = 0; tile < T::kTiles; ++tile) wgmma::Settle(k[h][tile]);
        }
      }
#pragma unroll
      for (int h = 0; h < kH; ++h) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t x = ptx::MultiplyBf16(a[h][0][i & 1], b[0][i]);
#pragma unroll
          for (int r = 1; r < kR; ++r) x = ptx::MultiplyAddBf16(a[h][r][i & 1], b[r][i], x);
          k[h][0][i] = x;
        }
      }
      if (!kContinues && step == 0) TakeTurn();
      wgmma::Fence();
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        const uint64_t query = wgmma::Tile(shared_.Query(first_head_ + h) + step / 4 * T::kTileBytes) +
                               step % 4 * wgmma::kColumnStep;
        wgmma::MmaRegisters<0>(score_[h], k[h][0], query, step > 0);
      }
      wgmma::Commit();
    }
  }

  // What a row must not see becomes -inf, whatever stood there, NaN included.
  __device__ void Mask(const RowsTask& task, int first_token) {
    const int token = first_token + warp_ * 16 + (lane_ >> 2);
#pragma unroll
    for (int i = 0; i < kN / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = i * 8 + (lane_ & 3) * 2 + e;
        const int last = min(task.first_position + column * task.position_step, task.n_tokens - 1);
#pragma unroll
        for (int h = 0; h < kH; ++h) {
          if (token > last) score_[h][4 * i + e] = -INFINITY;
          if (token + 8 > last) score_[h][4 * i + 2 + e] = -INFINITY;
        }
      }
    }
  }

  // Scores become weights 2^(score - maximum), in shared memory as [kN][64 tokens]. The maxima of rows move
  // only when one has to, which the warpgroup finds out together; any number near the greatest score will do,
  // so they are bfloat16 and two of them one register.
  // n_tokens: of the page that exist.
  __device__ void Weigh(bool is_first, int n_tokens) {
    float most = 0.0f;
    if (!is_first) {
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        uint32_t maxima[kN / 8];
        LoadMaxima(h, maxima);
#pragma unroll
        for (int i = 0; i < kN / 8; ++i) {
          const float x = ptx::LowBf16(maxima[i]), y = ptx::HighBf16(maxima[i]);
          score_[h][4 * i] -= x, score_[h][4 * i + 1] -= y;
          score_[h][4 * i + 2] -= x, score_[h][4 * i + 3] -= y;
          most = fmaxf(most, fmaxf(fmaxf(score_[h][4 * i], score_[h][4 * i + 1]),
                                   fmaxf(score_[h][4 * i + 2], score_[h][4 * i + 3])));
        }
      }
    }
    // Also: every warp is done with the products that read the weights of the page before.
    const bool moves = ptx::NamedBarrierAny(1 + group_, 128, is_first || most > kRescaleAbove);
    if (moves) MoveMaxima(is_first);
    if constexpr (T::kFactored) {
      StoreFactored(n_tokens);
    } else {
      StoreWeights();
    }
    wgmma::FenceShared();
    Barrier();
  }

  __device__ void StoreWeights() {
#pragma unroll
    for (int h = 0; h < kH; ++h) {
      const uint32_t weights = shared_.Weights(first_head_ + h) + weights_offset_;
#pragma unroll
      for (int i = 0; i < kN / 8; i += 2) {
        uint32_t w[4];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          float(&s)[kN / 2] = score_[h];
          const int at = 4 * (i + k);
          const float p0 = ptx::Exp2(s[at]), p1 = ptx::Exp2(s[at + 1]);
          const float p2 = ptx::Exp2(s[at + 2]), p3 = ptx::Exp2(s[at + 3]);
          sum_[h][2 * (i + k)] += p0 + p2, sum_[h][2 * (i + k) + 1] += p1 + p3;
          w[2 * k] = ptx::PackBf16(p0, p1), w[2 * k + 1] = ptx::PackBf16(p2, p3);
        }
        wgmma::StoreMatricesTransposed(weights + i * 1024, w[0], w[1], w[2], w[3]);
      }
    }
  }

  // Of rows 2 (l % 4) and the next of every 8.
  __device__ void LoadMaxima(int h, uint32_t (&maxima)[kN / 8]) {
    const auto* from =
        reinterpret_cast<const uint2*>(shared_.Maxima(first_head_ + h) + (lane_ & 3) * (kN / 8));
#pragma unroll
    for (int i = 0; i < kN / 16; ++i) maxima[2 * i] = from[i].x, maxima[2 * i + 1] = from[i].y;
  }

  __device__ void MoveMaxima(bool is_first) {
    uint32_t before[kH][kN / 8] = {};
#pragma unroll
    for (int h = 0; h < kH; ++h) {
      if (!is_first) LoadMaxima(h, before[h]);
      float* scratch = shared_.scratch + ((first_head_ + h) * 4 + warp_) * kN + (lane_ & 3) * 2;
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        float x = fmaxf(score_[h][4 * i], score_[h][4 * i + 2]);
        float y = fmaxf(score_[h][4 * i + 1], score_[h][4 * i + 3]);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
          x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes)), y = fmaxf(y, __shfl_xor_sync(~0u, y, lanes));
        }
        if (lane_ < 4) *reinterpret_cast<float2*>(scratch + i * 8) = make_float2(x, y);
      }
    }
    Barrier();
#pragma unroll
    for (int h = 0; h < kH; ++h) {
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        float2 most = make_float2(kNoMax, kNoMax);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float2 m = *reinterpret_cast<const float2*>(
              shared_.scratch + ((first_head_ + h) * 4 + w) * kN + (lane_ & 3) * 2 + i * 8);
          most.x = fmaxf(most.x, m.x), most.y = fmaxf(most.y, m.y);
        }
        const float x0 = ptx::LowBf16(before[h][i]), y0 = ptx::HighBf16(before[h][i]);
        if (!is_first) most.x = fmaxf(most.x, 0.0f), most.y = fmaxf(most.y, 0.0f);
        const uint32_t moved = ptx::PackBf16(x0 + most.x, y0 + most.y);
        if (warp_ == 0 && lane_ < 4) shared_.Maxima(first_head_ + h)[lane_ * (kN / 8) + i] = moved;
        const float x = ptx::LowBf16(moved) - x0, y = ptx::HighBf16(moved) - y0;
        score_[h][4 * i] -= x, score_[h][4 * i + 1] -= y;
        score_[h][4 * i + 2] -= x, score_[h][4 * i + 3] -= y;
        if (is_first) continue;
        const float x_factor = ptx::Exp2(-x), y_factor = ptx::Exp2(-y);
        sum_[h][2 * i] *= x_factor, sum_[h][2 * i + 1] *= y_factor;
#pragma unroll
        for (int tile = 0; tile < T::kTiles; ++tile) {
          out_[h][tile][4 * i] *= x_factor, out_[h][tile][4 * i + 1] *= y_factor;
          out_[h][tile][4 * i + 2] *= x_factor, out_[h][tile][4 * i + 3] *= y_factor;
        }
      }
    }
  }

  // out += V^T weights^T, [64 numbers of d][kN]. kMasks: numbers of tokens from n_tokens on are taken as 0,
  // or 0 * NaN would spread.
  template <bool kMasks>
  __device__ void Accumulate(uint32_t (&operands)[2][kH][T::kTiles][4], int n_tokens) {
    const uint32_t stage = NextStage();
    if constexpr (T::kFactored) {
      AccumulateFactored(stage);
    } else {
      AccumulateExpanded<kMasks>(stage, operands, n_tokens);
    }
  }
  template <bool kMasks>
  __device__ void AccumulateExpanded(uint32_t stage, uint32_t (&operands)[2][kH][T::kTiles][4],
                                     int n_tokens) {
    uint32_t factors[2][kR][T::kTiles][4];
    const auto load = [&](int step) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int tile = 0; tile < T::kTiles; ++tile) {
          ptx::LoadMatricesTransposed(
              factors[step & 1][r][tile],
              stage + r * T::kRankBytes +
                  TokenRows<T::kDim>::Offset(step * 16 + value_token_, value_chunk_ + tile * 8));
        }
      }
    };
    load(0);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t(&v)[kH][T::kTiles][4] = operands[step & 1];
      const uint32_t(&b)[kR][T::kTiles][4] = factors[step & 1];
      if (step < 3) load(step + 1);
      if (step >= 2) {
        wgmma::Wait<1>();
#pragma unroll
        for (int h = 0; h < kH; ++h) {
#pragma unroll
          for (int tile = 0; tile < T::kTiles; ++tile) wgmma::Settle(v[h][tile]);
        }
      }
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        uint32_t a[kR][2];  // of the tokens of each register pair: a matrix whose rows are all the same
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          ptx::LoadTwoMatrices(
              a[r], (HeadRow(stage, h, r) + ((((lane_ >> 3) & 1) ^ HeadSwizzle(h)) << 4)) ^ (step << 5));
        }
#pragma unroll
        for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            uint32_t x = ptx::MultiplyBf16(a[0][i / 2], b[0][tile][i]);
#pragma unroll
            for (int r = 1; r < kR; ++r) x = ptx::MultiplyAddBf16(a[r][i / 2], b[r][tile][i], x);
            if constexpr (kMasks) {
              const int token = step * 16 + i / 2 * 8 + (lane_ & 3) * 2;
              x &= (token < n_tokens ? 0xffffu : 0u) | (token + 1 < n_tokens ? 0xffff0000u : 0u);
            }
            v[h][tile][i] = x;
          }
        }
      }
      if (step == 0) TakeTurn();
      wgmma::Fence();
#pragma unroll
      for (int h = 0; h < kH; ++h) {
        const uint64_t weights = wgmma::Tile(shared_.Weights(first_head_ + h)) + step * wgmma::kColumnStep;
#pragma unroll
        for (int tile = 0; tile < T::kTiles; ++tile) {
          wgmma::MmaRegisters<0>(out_[h][tile], v[h][tile], weights, 1);
        }
      }
      wgmma::Commit();
    }
  }

  // --- from factors: kH * kN rows of all heads are the columns of each product
  static constexpr int kColumns = kH * kN;
  using AllHeads = float (&)[kColumns / 2];
  __device__ uint32_t FactoredWeights(int rank) const {
    return shared_.base + T::kWeightsOffset + (group_ * kR + rank) * kH * T::kTileBytes;
  }
  // A of tokens l / 4 and l / 4 + 8 of the warp's 16, in the halves of a word.
  __device__ uint32_t TokenFactors(uint32_t stage, int head, int rank) const {
    const uint32_t row = HeadRow(stage, head, rank) + (lane_ >> 2) * 2;
    const uint32_t low = ptx::LoadShared16(row + (((warp_ * 2) ^ HeadSwizzle(head)) << 4));
    return low | ptx::LoadShared16(row + (((warp_ * 2 + 1) ^ HeadSwizzle(head)) << 4)) << 16;
  }

  __device__ void ScoreFactored(uint32_t stage);
  __device__ void StoreFactored(int n_tokens);
  __device__ void ClearRows(uint32_t stage, int first);
  __device__ void AccumulateFactored(uint32_t stage);

  __device__ void Finish(const RowsTask& task);
  template <bool kPartial>
  __device__ void FinishSums(const RowsTask& task);
  template <typename Store>
  __device__ void Write(const RowsTask& task, int first_row, const Store& store);

  const RowsParams& p_;
  const RowsShared<T>& shared_;
  const int group_, first_head_, warp_, lane_;
  uint32_t key_offset_, weights_offset_;
  int value_token_, value_chunk_;
  RingPosition at_;
  float score_[kH][kN / 2];
  float sum_[kH][kN / 4];
  float out_[kH][T::kTiles][kN / 2];
};

}  // namespace t6::cuda
