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

  // `ring_address`: what Ring::Next counts from.
  template <class Ring>
  __device__ void Run(Ring& ring, uint32_t ring_address) {
    if (begin_ == end_) return;
    uint4 look[2][kLoads];
    Look(look, [](const uint4&) { return true; });
    const int n_stages = (end_ - begin_ + shape_.columns - 1) / shape_.columns * shape_.n_stages;
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
    while (__any_sync(~0u, links_.awaits && Look(look, [](const uint4& x) { return AnyAbsent(x); }))) {
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
  }

 private:
  using Output::begin_, Output::call_, Output::end_, Output::InputRow, Output::kBarrier, Output::kThreads,
      Output::kWarps, Output::lane_, Output::links_, Output::LoadOld, Output::n_rows_, Output::Scale,
      Output::shape_, Output::shared_, Output::warp_, Output::Write, Output::WriteSquare;
  static constexpr int kAhead = 1;  // stages whose weights are in registers
  static constexpr int kLoads = (kParts + 31) / 32;

  // Looks at this lane's parts of the rows that `which` holds for; returns whether there were any.
  template <typename Which>
  __device__ bool Look(uint4 (&x)[2][kLoads], Which which) const {
    bool any = false;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if (row >= n_rows_) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) x[row][i] = make_uint4(0, 0, 0, 0);
        continue;
      }
      const auto* at = static_cast<const __nv_bfloat16*>(call_.in) + InputRow(row) * call_.in_stride;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int part = lane_ + i * 32, own = part / 4, stage = own / kChunks;
        const int chunk = warp_ + own % kChunks * kWarps;
        const int column = (stage * shape_.stage_chunks + chunk) * ProductShape::kChunk + part % 4 * 8;
        const bool exists =
            row < n_rows_ && stage < shape_.n_stages && chunk < shape_.ChunksOf(stage) && column < call_.k;
        if (!exists) {
          x[row][i] = make_uint4(0, 0, 0, 0);
        } else if (which(x[row][i])) {
          x[row][i] = LookAt16Bytes(at + column), any = true;
        }
      }
    }
    return any;
  }
  __device__ void PutRows(const uint4 (&x)[2][kLoads]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (lane_ + i * 32 < kParts) rows_[row * kParts + lane_ + i * 32] = x[row][i];
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
