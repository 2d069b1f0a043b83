// A product of one or two rows: their numbers lie in shared memory, each warp's own apart, so that registers
// hold the weights of the next stages instead, read before the rows are there.
#pragma once

#include "engine/backend/cuda/item_ring.cuh"
#include "engine/backend/cuda/product.cuh"

namespace t6::cuda {

template <int kWarpsT>
class FewRowsProduct : public ProductOutput<2, kWarpsT, 8> {
 public:
  using Output = ProductOutput<2, kWarpsT, 8>;
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
    Stages stages(*this);
    Weights weights;
    stages.LoadNext(ring, ring_address, weights);
    Aim(begin_);
    Scale();
    if (links_.awaits) {
      while (__any_sync(~0u, LookAgain(places, look))) {
      }
    }
    PutRows(look);
    __syncwarp();

    const uint32_t rows = ptx::SharedAddress(rows_ + lane_ / 8 % 2 * kParts + lane_ % 4) + lane_ / 4 % 2 * 8;
    Accumulators sums;
    sums.Clear();
    // Tiles that are written together: their barrier and their writing are the block's time. Of a residual
    // one, so that a row's squares stay with its lanes.
    const int most = call_.epilogue == Epilogue::kAdd ? 1 : kTiles;
    float square = 0.0f;
    int column = begin_, stage = 0, tile = 0;
#pragma unroll 1
    while (true) {
      Multiply(weights, rows + stage * kChunks * 64, sums);
      const bool is_last = stages.left == 0;
      if (!is_last) stages.LoadNext(ring, ring_address, weights);
      if (++stage < shape_.n_stages) continue;
      PutSums(tile, sums);
      stage = 0, ++tile;
      if (tile < most && !is_last) continue;
      ptx::NamedBarrier(kBarrier, kThreads);
      if (is_last) ring.Release();
      square += Write(0);
      if (is_last) break;
      column += tile << shape_.columns_log2(), tile = 0;
      Aim(column);
      ptx::NamedBarrier(kBarrier, kThreads);
    }
    if (call_.epilogue == Epilogue::kAdd) WriteSquare(square);
    WriteBest();
  }

 private:
  using Output::Aim, Output::begin_, Output::call_, Output::end_, Output::InputRow, Output::kBarrier,
      Output::kThreads, Output::kTiles, Output::kWarps, Output::lane_, Output::links_, Output::n_rows_,
      Output::Scale, Output::shape_, Output::shared_, Output::warp_, Output::Write, Output::WriteBest,
      Output::WriteSquare;

  // 16 bytes of a weight row are the lane's four words of an m16n8k16's left operand as they lie: its first
  // eight rows then are the weight rows' even pairs of k, its last eight their odd pairs. Two columns of the
  // right operand belong to an input row, its even pairs and its odd ones, and a weight row's sum is that of
  // the first with the first and of the last with the second. So no word changes its register.
  struct Weights {
    uint4 low[kChunks], high[kChunks];  // of the tile's first and second eight rows
  };
  struct Accumulators {
    static constexpr int kChains = 2;  // so that a product need not wait for the one before
    float low[kChains][4], high[kChains][4];
    __device__ void Clear() {
#pragma unroll
      for (int i = 0; i < kChains; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) low[i][j] = high[i][j] = 0.0f;
      }
    }
  };

  // What the loop over the block's stages needs of their shape.
  struct Stages {
    int left;  // to load
    const int n_stages, of_last_tile, chunks, last_chunks, size, last_size;
    int stage = 0;
    const int pitch8, warp;
    const uint32_t own;  // the lane's bytes in a stage

    __device__ explicit Stages(const FewRowsProduct& p)
        : left(((p.end_ - p.begin_ + p.shape_.columns - 1) >> p.shape_.columns_log2()) * p.shape_.n_stages),
          n_stages(p.shape_.n_stages),
          of_last_tile(p.shape_.n_stages),
          chunks(p.shape_.stage_chunks),
          last_chunks(p.shape_.ChunksOf(p.shape_.n_stages - 1)),
          size(ItemPlaces::SizeOf(p.shape_.bytes(p.shape_.columns))),
          last_size(
              ItemPlaces::SizeOf(p.shape_.bytes(((p.end_ - p.begin_ - 1) & (p.shape_.columns - 1)) + 1))),
          pitch8(8 * p.shape_.pitch()),
          warp(p.warp_),
          own(p.lane_ / 4 * p.shape_.pitch() + p.warp_ * ProductShape::kChunk * 2 + p.lane_ % 4 * 16) {}

    template <class Ring>
    __device__ void LoadNext(Ring& ring, uint32_t ring_address, Weights& to) {
      const uint32_t at = ring_address + ring.NextOf(left <= of_last_tile ? last_size : size) + own;
      // Where the warp has no such chunk its rows are zero, and any weights do: the last ones.
      const int behind = (stage + 1 < n_stages ? chunks : last_chunks) - 1 - warp;
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const uint32_t from = at + min(i * kWarps, behind) * (ProductShape::kChunk * 2);
        to.low[i] = ptx::LoadShared(from), to.high[i] = ptx::LoadShared(from + pitch8);
      }
      --left;
      if (++stage == n_stages) stage = 0;
    }
  };
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
        const uint4& w = x[row][i];  // even pairs first
        rows_[row * kParts + (stage * kChunks + i % kChunks) * 4 + lane_ % 4] =
            make_uint4(w.x, w.z, w.y, w.w);
      }
    }
  }

  __device__ void Multiply(const Weights& weights, uint32_t rows, Accumulators& sums) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const float2 pairs = ptx::LoadSharedFloats(rows + i * 64);
      const uint32_t x = __float_as_uint(pairs.x), y = __float_as_uint(pairs.y);
      const uint4 &w = weights.low[i], &v = weights.high[i];
      const uint32_t low[4] = {w.x, w.y, w.z, w.w}, high[4] = {v.x, v.y, v.z, v.w};
      ptx::MultiplyAdd(sums.low[i % Accumulators::kChains], low, x, y);
      ptx::MultiplyAdd(sums.high[i % Accumulators::kChains], high, x, y);
    }
  }
  // A lane of four has a row: rows 0 and 1 are the first two's, the others' numbers are of no row.
  __device__ void PutSums(int tile, Accumulators& sums) const {
    float low = 0.0f, high = 0.0f;
#pragma unroll
    for (int i = 0; i < Accumulators::kChains; ++i) {
      low += sums.low[i][0] + sums.low[i][3], high += sums.high[i][0] + sums.high[i][3];
    }
    if (lane_ % 4 < 2) {
      float* to = &shared_.sums[tile][warp_][lane_ % 4][lane_ / 4];
      to[0] = low, to[8] = high;
    }
    sums.Clear();
  }

  uint4* rows_;  // of this warp: [2][kParts]
};

}  // namespace t6::cuda
