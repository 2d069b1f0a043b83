// A block's share of a product of few rows, by warps that work together: weight rows come through a ring in
// shared memory, eight or sixteen input rows through registers, sums meet in shared memory.
#pragma once

#include "engine/backend/cuda/product_shape.h"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/skinny.h"

namespace t6::cuda {

#if T6_PTX_HAS_SM90
// Asks for all weights of the block's share, a lane a row. A warp calls it; Ring::Acquire by lane 0. By
// value: what lies in global memory would be loaded again for every item.
template <class Ring>
__device__ void FillProduct(const SkinnyCall call, const ProductShape shape, Ring& ring, int lane) {
  const int n_parts = call.epilogue == Epilogue::kSwiGlu ? 2 : 1;
  const auto* weight = static_cast<const unsigned char*>(call.weight);
  const int64_t row_bytes = static_cast<int64_t>(call.k_stride) * 2;
  const int own = lane % shape.columns, up = lane < shape.columns ? 0 : call.up_row;
  const int end = shape.End(blockIdx.x);
  const uint64_t policy = ptx::EvictFirstPolicy();
  for (int column = shape.Begin(blockIdx.x); column < end; column += shape.columns) {
    const int n = min(shape.columns, end - column);
    for (int stage = 0; stage < shape.n_stages; ++stage) {
      const int bytes = shape.ChunksOf(stage) * ProductShape::kChunk * 2;
      uint2 at = make_uint2(0, 0);
      if (lane == 0) {
        at = ring.Acquire(shape.bytes());
        ptx::BarrierExpectBytes(at.y, bytes * n * n_parts);
      }
      at.x = __shfl_sync(~0u, at.x, 0), at.y = __shfl_sync(~0u, at.y, 0);
      if (lane < ProductShape::kTile && own < n) {
        ptx::CopyBytes(
            at.x + lane * shape.pitch(),
            weight + (column + own + up) * row_bytes + stage * shape.stage_chunks * ProductShape::kChunk * 2,
            bytes, at.y, policy);
      }
      __syncwarp();
    }
  }
}
#endif

// kWarps warps share k. A lane's 16 bytes of a weight row are eight consecutive k: the operands of two
// m16n8k16, in an order of k that is the same for both factors. A: weight rows. B: input rows.
template <int kRowTiles, int kWarps>
class Product {
 public:
  static constexpr int kRows = kRowTiles * 8, kThreads = kWarps * 32;
  static constexpr int kBarrier = 2;
  static_assert(kRows * ProductShape::kTile <= kThreads);

  struct Shared {
    static constexpr int kPitch = ProductShape::kTile + 4;  // spreads a fragment's rows over the banks
    float sums[2][kWarps][kRows][kPitch];
    float scale[kRows];
  };

  __device__ Product(const SkinnyCall& call, const ProductShape& shape, Shared& shared, int warp, int lane)
      : call_(call),
        shared_(shared),
        shape_(shape),
        warp_(warp),
        lane_(lane),
        begin_(shape.Begin(blockIdx.x)),
        end_(shape.End(blockIdx.x)),
        row_((warp * 32 + lane) >> (shape.columns == ProductShape::kTile ? 4 : 3)),
        column_(lane & (shape.columns - 1)) {}

  // `ring_address`: what Ring::Next counts from.
  template <class Ring>
  __device__ void Run(Ring& ring, uint32_t ring_address) {
    if (begin_ == end_) return;
    Rows rows[kHeldStages];
    LoadGroup(0, rows);
    float old = LoadOld(begin_), square = 0.0f;
    Scale();
    int turn = 0;
    for (int column = begin_; column < end_; column += shape_.columns, turn ^= 1) {
      float sums[2][kRowTiles][4] = {};
      for (int first = 0; first < shape_.n_stages; first += kHeldStages) {
        if (shape_.n_stages > kHeldStages && (first > 0 || column > begin_)) LoadGroup(first, rows);
#pragma unroll
        for (int i = 0; i < kHeldStages; ++i) {
          if (first + i >= shape_.n_stages) break;
          const uint32_t at = ring_address + ring.Next(shape_.bytes());
          Multiply(rows[i], at, shape_.ChunksOf(first + i), sums);
        }
      }
      PutSums(turn, sums);
      ptx::NamedBarrier(kBarrier, kThreads);
      ring.Release();
      square += Write(turn, column, old);
      old = LoadOld(column + shape_.columns);
    }
    if (call_.epilogue == Epilogue::kAdd) WriteSquare(square);
  }

 private:
  static constexpr int kWarpChunks = ProductChunks(kWarps);
  static constexpr int kHeldStages = kRowTiles == 1 ? 6 : 3;  // whose input rows are in registers at once
  static constexpr int kPieces = 5;  // of a row's squares, asked for at once by each lane
  struct Rows {
    uint4 x[kRowTiles][kWarpChunks];
  };

  __device__ int64_t InputRow(int row) const {
    return call_.row_index != nullptr ? call_.row_index[row] : row;
  }

  // Of kHeldStages stages, all at once: beside a stream of weights a load takes long.
  __device__ void LoadGroup(int first, Rows (&rows)[kHeldStages]) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = m * 8 + lane_ / 4;
      const bool exists = row < call_.n_rows;
      const auto* at =
          static_cast<const __nv_bfloat16*>(call_.in) + InputRow(exists ? row : 0) * call_.in_stride;
#pragma unroll
      for (int s = 0; s < kHeldStages; ++s) {
        const int n = exists && first + s < shape_.n_stages ? shape_.ChunksOf(first + s) : 0;
        const int base = (first + s) * shape_.stage_chunks;
#pragma unroll
        for (int i = 0; i < kWarpChunks; ++i) {  // this warp's chunks: every kWarps-th
          const int chunk = warp_ + i * kWarps,
                    column = (base + chunk) * ProductShape::kChunk + lane_ % 4 * 8;
          rows[s].x[m][i] =
              chunk < n && column < call_.k ? ptx::LoadChanging16(at + column) : make_uint4(0, 0, 0, 0);
        }
      }
    }
  }

  __device__ void Multiply(const Rows& rows, uint32_t stage, int n_chunks,
                           float (&sums)[2][kRowTiles][4]) const {
    const int pitch = shape_.pitch();
    const uint32_t at = stage + lane_ / 4 * pitch + warp_ * ProductShape::kChunk * 2 + lane_ % 4 * 16;
    // Where the warp has no such chunk its rows are zero, and any weights do.
    uint4 w[kWarpChunks], v[kWarpChunks];
#pragma unroll
    for (int i = 0; i < kWarpChunks; ++i) {
      const uint32_t from =
          at + (warp_ + i * kWarps < n_chunks ? i * kWarps : -warp_) * ProductShape::kChunk * 2;
      w[i] = ptx::LoadShared(from), v[i] = ptx::LoadShared(from + 8 * pitch);
    }
#pragma unroll
    for (int i = 0; i < kWarpChunks; ++i) {
      const uint32_t low[4] = {w[i].x, v[i].x, w[i].y, v[i].y}, high[4] = {w[i].z, v[i].z, w[i].w, v[i].w};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        ptx::MultiplyAdd(sums[0][m], low, rows.x[m][i].x, rows.x[m][i].y);
        ptx::MultiplyAdd(sums[1][m], high, rows.x[m][i].z, rows.x[m][i].w);
      }
    }
  }

  __device__ void PutSums(int turn, const float (&sums)[2][kRowTiles][4]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        shared_.sums[turn][warp_][m * 8 + lane_ % 4 * 2 + j % 2][lane_ / 4 + j / 2 * 8] =
            sums[0][m][j] + sums[1][m][j];
      }
    }
  }
  __device__ float SumOf(int turn, int column) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared_.sums[turn][w][row_][column];
    return sum;
  }

  // The rows' norms, a warp a row. They are there after the next barrier.
  __device__ void Scale() {
    if (call_.squares == nullptr) return;
    for (int row = warp_; row < call_.n_rows; row += kWarps) {
      const float* pieces = call_.squares + InputRow(row) * call_.n_pieces;
      float square = 0.0f;
      for (int base = lane_; base < call_.n_pieces; base += kPieces * 32) {
        float x[kPieces];
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          x[i] = base + i * 32 < call_.n_pieces ? ptx::LoadChanging(pieces + base + i * 32) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kPieces; ++i) square += x[i];
      }
#pragma unroll
      for (int i = 16; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
      if (lane_ == 0) {
        shared_.scale[row] = 1.0f / sqrtf(square / static_cast<float>(call_.norm_width) + call_.norm_eps);
      }
    }
  }

  // The thread's output of a tile.
  __device__ bool HasOutput(int column) const { return row_ < call_.n_rows && column + column_ < end_; }
  __device__ float* Out(int column) const {
    return static_cast<float*>(call_.out) + static_cast<int64_t>(row_) * call_.out_stride + column + column_;
  }
  __device__ float LoadOld(int column) const {
    return call_.epilogue == Epilogue::kAdd && HasOutput(column) ? ptx::LoadChanging(Out(column)) : 0.0f;
  }

  // Returns the square of a residual that it wrote.
  __device__ float Write(int turn, int column, float old) {
    if (!HasOutput(column)) return 0.0f;
    const float scale = call_.squares != nullptr ? shared_.scale[row_] : 1.0f;
    const float x = SumOf(turn, column_) * scale;
    if (call_.epilogue == Epilogue::kSwiGlu) {
      const float up = SumOf(turn, column_ + shape_.columns) * scale;
      static_cast<__nv_bfloat16*>(
          call_.out)[static_cast<int64_t>(row_) * call_.out_stride + column + column_] =
          __float2bfloat16(x / (1.0f + __expf(-x)) * up);
      return 0.0f;
    }
    const float y = x + old;
    *Out(column) = y;
    if (call_.epilogue != Epilogue::kAdd) return 0.0f;
    static_cast<__nv_bfloat16*>(
        call_.stats.rows)[static_cast<int64_t>(row_) * call_.stats.stride + column + column_] =
        __float2bfloat16(y);
    return y * y;
  }

  // Of this block's columns, summed over the lanes that share the row.
  __device__ void WriteSquare(float square) {
#pragma unroll
    for (int i = ProductShape::kTile / 2; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
    if (column_ == 0 && row_ < call_.n_rows) {
      call_.stats.squares[static_cast<int64_t>(row_) * call_.stats.n_pieces + blockIdx.x] = square;
    }
  }

  const SkinnyCall& call_;
  Shared& shared_;
  const ProductShape shape_;
  const int warp_, lane_;
  const int begin_, end_;   // this block's columns
  const int row_, column_;  // of the thread's output in a tile
};

}  // namespace t6::cuda
