// A product of one or two rows: their numbers lie in shared memory, each warp's own apart, so that registers
// hold the weights of the next stages instead, read before the rows are there.
#pragma once

#include "engine/backend/cuda/product.cuh"

namespace t6::cuda {

template <int kWarpsT>
class FewRowsProduct : public ProductOutput<2, kWarpsT> {
 public:
  using Output = ProductOutput<2, kWarpsT>;
  static constexpr int kChunks = ProductChunks(kWarpsT), kParts = kFewRowsChunks * 4;  // of 16 bytes
  struct Shared {
    typename Output::Sums sums;
    alignas(16) uint4 rows[kWarpsT][2][kParts];
  };

  __device__ FewRowsProduct(const SkinnyCall& call, const ProductShape& shape, const ProductLinks& links,
                            int n_rows, Shared& shared, int warp, int lane)
      : Output(call, shape, links, n_rows, shared.sums, warp, lane), rows_(shared.rows[warp][0]) {}

  // `ring_address`: what Ring::Next counts from. meanwhile(): once, when the rows have been asked for.
  template <class Ring, typename Meanwhile>
  __device__ void Run(Ring& ring, uint32_t ring_address, Meanwhile meanwhile) {
    if (begin_ == end_) return meanwhile();
    const Places places(*this);
    uint4 look[2][kLoads];
    LookFirst(places, look);
    meanwhile();
    const int n_tiles = (end_ - begin_ + shape_.columns - 1) >> shape_.columns_log2();
    const int n_stages = n_tiles * shape_.n_stages;
    ProductWeights<kWarps> weights[kAhead];
    int next_column = begin_, next_stage = 0;  // whose weights are read next
    const auto load = [&](ProductWeights<kWarps>& to) {
      const int bytes = shape_.bytes(min(shape_.columns, end_ - next_column));
      to.Load(ring_address + ring.Next(bytes), shape_.pitch(), shape_.ChunksOf(next_stage), warp_, lane_);
      if (++next_stage == shape_.n_stages) next_stage = 0, next_column += shape_.columns;
    };
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < n_stages) load(weights[i]);
    }
    Scale();
    if (links_.awaits) {
      while (__any_sync(~0u, LookAgain(places, look))) {
      }
    }
    PutRows(look);
    __syncwarp();

    const uint32_t rows = ptx::SharedAddress(rows_ + lane_ / 4 % 2 * kParts + lane_ % 4);
    float sums[2][4] = {}, old = LoadOld(begin_), square = 0.0f;
    int column = begin_, stage = 0, turn = 0;
#pragma unroll 1
    for (int first = 0; first < n_stages; first += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= n_stages) break;
        Multiply(weights[i], rows + stage * kChunks * 64, sums);
        if (first + i + kAhead < n_stages) load(weights[i]);
        if (++stage < shape_.n_stages) continue;
        PutSums(turn, sums);
        ptx::NamedBarrier(kBarrier, kThreads);
        if (first + i + 1 == n_stages) ring.Release();
        square += Write(turn, column, old);
        column += shape_.columns, stage = 0, turn ^= 1;
        old = LoadOld(column);
      }
    }
    if (call_.epilogue == Epilogue::kAdd) WriteSquare(square);
    WriteBest();
  }

 private:
  using Output::begin_, Output::call_, Output::end_, Output::InputRow, Output::kBarrier, Output::kThreads,
      Output::kWarps, Output::lane_, Output::links_, Output::LoadOld, Output::n_rows_, Output::Scale,
      Output::shape_, Output::shared_, Output::warp_, Output::Write, Output::WriteBest, Output::WriteSquare;
  static constexpr int kAhead = 1;  // stages whose weights are in registers
  // A lane has 16 bytes of each of the warp's chunks of every eighth stage.
  static constexpr int kStages = kFewRowsChunks / kChunks, kPasses = (kStages + 7) / 8;
  static constexpr int kLoads = kPasses * kChunks;

  // Where they are: at[pass] and every kWarps chunks on, while that is less than chunks[pass].
  struct Places {
    const __nv_bfloat16* at[kPasses];
    int chunks[kPasses];
    __device__ explicit Places(const FewRowsProduct& p) {
      const auto* in = static_cast<const __nv_bfloat16*>(p.call_.in);
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int stage = p.lane_ / 4 + pass * 8;
        const int column = (stage * p.shape_.stage_chunks + p.warp_) * ProductShape::kChunk + p.lane_ % 4 * 8;
        const int behind = (p.call_.k - column + ProductShape::kChunk - 1) >> ProductShape::kChunkLog2;
        chunks[pass] = stage < p.shape_.n_stages ? min(p.shape_.ChunksOf(stage) - p.warp_, behind) : 0;
        at[pass] = in + column;
      }
    }
  };

  __device__ void LookFirst(const Places& places, uint4 (&x)[2][kLoads]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const bool exists = row < n_rows_;
      const int64_t from = exists ? InputRow(row) * call_.in_stride : 0;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int pass = i / kChunks, apart = i % kChunks * kWarps;
        x[row][i] = make_uint4(0, 0, 0, 0);
        LookAt16Bytes(x[row][i], places.at[pass] + from + apart * ProductShape::kChunk,
                      exists && apart < places.chunks[pass]);
      }
    }
  }
  // At those that were absent; returns whether there were any. What does not exist is 0.
  __device__ bool LookAgain(const Places& places, uint4 (&x)[2][kLoads]) const {
    bool any = false;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if (row >= n_rows_) break;
      const int64_t from = InputRow(row) * call_.in_stride;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const bool absent = AnyAbsent(x[row][i]);
        LookAt16Bytes(x[row][i], places.at[i / kChunks] + from + i % kChunks * kWarps * ProductShape::kChunk,
                      absent);
        any |= absent;
      }
    }
    return any;
  }
  __device__ void PutRows(const uint4 (&x)[2][kLoads]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int stage = lane_ / 4 + i / kChunks * 8;
        if (kStages % 8 != 0 && stage >= kStages) continue;
        rows_[row * kParts + (stage * kChunks + i % kChunks) * 4 + lane_ % 4] = x[row][i];
      }
    }
  }

  __device__ void Multiply(const ProductWeights<kWarps>& weights, uint32_t rows, float (&sums)[2][4]) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const uint4 x = ptx::LoadShared(rows + i * 64), &w = weights.low[i], &v = weights.high[i];
      const uint32_t low[4] = {w.x, v.x, w.y, v.y}, high[4] = {w.z, v.z, w.w, v.w};
      ptx::MultiplyAdd(sums[0], low, x.x, x.y);
      ptx::MultiplyAdd(sums[1], high, x.z, x.w);
    }
  }
  // Rows 0 and 1 are the first lane's of four; the others' numbers are of no row.
  __device__ void PutSums(int turn, float (&sums)[2][4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (lane_ % 4 == 0) {
        shared_.sums[turn][warp_][j % 2][lane_ / 4 + j / 2 * 8] = sums[0][j] + sums[1][j];
      }
      sums[0][j] = sums[1][j] = 0.0f;
    }
  }

  uint4* rows_;  // of this warp: [2][kParts]
};

}  // namespace t6::cuda
