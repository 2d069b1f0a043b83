// A block's share of a product of few rows, by warps that work together: weight rows come through a ring in
// shared memory, up to eight input rows through registers, sums meet in shared memory.
#pragma once

#include "engine/backend/cuda/exchange.cuh"
#include "engine/backend/cuda/product_shape.h"
#include "engine/backend/cuda/sampling_key.cuh"
#include "engine/backend/cuda/skinny.h"

namespace t6::cuda {

#if T6_PTX_HAS_SM90
// Asks for all weights of the block's share. A warp that stands together calls it. By value: what lies in
// global memory would be loaded again for every item.
template <class Ring>
__device__ void FillProduct(const SkinnyCall call, const ProductShape shape, Ring& ring) {
  const bool has_up = call.epilogue == Epilogue::kSwiGlu;
  const auto* weight = static_cast<const unsigned char*>(call.weight);
  const int64_t row_bytes = static_cast<int64_t>(call.k_stride) * 2, up_bytes = call.up_row * row_bytes;
  const int end = shape.End(blockIdx.x), pitch = shape.pitch();
  const uint64_t policy = ptx::EvictFirstPolicy();
  for (int column = shape.Begin(blockIdx.x); column < end; column += shape.columns) {
    const int n = min(shape.columns, end - column);
    const unsigned char* from = weight + column * row_bytes;
    for (int stage = 0; stage < shape.n_stages; ++stage) {
      const int bytes = shape.ChunksOf(stage) * ProductShape::kChunk * 2;
      const uint2 at = ring.Acquire(shape.bytes(n));
      if (ptx::ElectOne()) {
        ptx::BarrierExpectBytes(at.y, has_up ? 2 * bytes * n : bytes * n);
        const auto copy_rows = [&](uint32_t to, const unsigned char* row) {
#pragma unroll 4
          for (int i = 0; i < n; ++i) {
            ptx::CopyBytes(to, row, bytes, at.y, policy);
            to += pitch, row += row_bytes;
          }
        };
        copy_rows(at.x, from);
        if (has_up) copy_rows(at.x + shape.columns * pitch, from + up_bytes);
      }
      __syncwarp();
      from += bytes;
    }
  }
}
#endif

// What becomes of the sums that kWarps warps have for kRows input rows: they are added, scaled by the row's
// norm, and written, a number a thread. Up to kTiles tiles at once, each from a buffer of its own; a single
// one from two in turn, so that the next one's sums need not wait.
template <int kRowsT, int kWarpsT, int kTilesT>
class ProductOutput {
 public:
  static constexpr int kRows = kRowsT, kWarps = kWarpsT, kThreads = kWarps * 32, kBarrier = 2;
  static constexpr int kTiles = kTilesT, kBuffers = kTiles == 1 ? 2 : kTiles;
  static_assert(kTiles * kRows * ProductShape::kTile <= kThreads);

  struct Sums {
    // Spreads a fragment's rows over the banks, where there are many.
    static constexpr int kPitch = ProductShape::kTile + (kRows > 2 ? 4 : 0);
    float sums[kBuffers][kWarps][kRows][kPitch];
    float scale[kRows];
  };

  // `n_rows`: of the call's, those that exist.
  __device__ ProductOutput(const SkinnyCall& call, const ProductShape& shape, const ProductLinks& links,
                           int n_rows, Sums& shared, int warp, int lane)
      : call_(call),
        links_(links),
        shared_(shared),
        shape_(shape),
        n_rows_(n_rows),
        warp_(warp),
        lane_(lane),
        begin_(shape.Begin(blockIdx.x)),
        end_(shape.End(blockIdx.x)),
        tile_(((warp * 32 + lane) >> shape.columns_log2()) / kRows),
        row_(((warp * 32 + lane) >> shape.columns_log2()) % kRows),
        column_(tile_ * shape.columns + (lane & (shape.columns - 1))) {}

 protected:
  static constexpr int kPieces = 5;  // of a row's squares, asked for at once by each lane

  __device__ int64_t InputRow(int row) const {
    return call_.row_index != nullptr ? call_.row_index[row] : row;
  }

  // The rows' norms, a warp a row, from the last on, which has the fewest chunks. They are there after the
  // next barrier.
  __device__ void Scale() {
    if (call_.squares == nullptr) return;
    for (int row = kWarps - 1 - warp_; row < n_rows_; row += kWarps) {
      const float* pieces = call_.squares + InputRow(row) * call_.n_pieces;
      float square = 0.0f;
      for (int base = lane_; base < call_.n_pieces; base += kPieces * 32) {
        float x[kPieces];
        bool absent;
        do {
          absent = false;
#pragma unroll
          for (int i = 0; i < kPieces; ++i) {
            x[i] = base + i * 32 < call_.n_pieces ? LookAt(pieces + base + i * 32) : 0.0f;
          }
#pragma unroll
          for (int i = 0; i < kPieces; ++i) absent |= IsAbsent(x[i]);
        } while (links_.awaits && absent);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) square += x[i];
      }
      __syncwarp();
#pragma unroll
      for (int i = 16; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
      if (lane_ == 0) {
        shared_.scale[row] = rsqrtf(square / static_cast<float>(call_.norm_width) + call_.norm_eps);
      }
    }
  }

  __device__ float SumOf(int buffer, int column) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared_.sums[buffer][w][row_][column];
    return sum;
  }

  __device__ int InTile() const { return lane_ & (shape_.columns - 1); }

  // The thread's output of the tiles from `column` on: where it goes, and the residual that it is added to.
  // In front of the products, where nobody waits for it.
  __device__ void Aim(int column) {
    id_ = column + column_, old_ = 0.0f;
    has_ = tile_ < kTiles && row_ < n_rows_ && id_ < end_;
    if (!has_) return;
    const int64_t at = static_cast<int64_t>(row_) * call_.out_stride + id_;
    narrow_ = static_cast<__nv_bfloat16*>(call_.out) + at, wide_ = static_cast<float*>(call_.out) + at;
    if (call_.epilogue == Epilogue::kAdd) {
      narrow_ = static_cast<__nv_bfloat16*>(call_.stats.rows) + row_ * call_.stats.stride + id_;
      old_ = ptx::LoadChanging(wide_);
    }
    link_ = nullptr, n_pads_ = 0;
    if (links_.rows == nullptr) return;
    const int64_t in_row = static_cast<int64_t>(row_) * links_.stride + id_;
    const int bytes = call_.epilogue == Epilogue::kStore ? sizeof(float) : sizeof(__nv_bfloat16);
    link_ = static_cast<unsigned char*>(links_.rows) + in_row * bytes;
    if (id_ + 1 == call_.n) n_pads_ = links_.stride - call_.n;
  }

  // Of the thread's tile, whose sums are in `buffer`, or as many buffers behind it. Returns the square of a
  // residual that it wrote.
  __device__ float Write(int buffer) {
    if (!has_) return 0.0f;
    const float scale = call_.squares != nullptr ? shared_.scale[row_] : 1.0f;
    const float x = SumOf(buffer + tile_, InTile()) * scale;
    if (call_.epilogue == Epilogue::kSwiGlu) {
      const float up = SumOf(buffer + tile_, InTile() + shape_.columns) * scale;
      const __nv_bfloat16 y = __float2bfloat16(__fdividef(x, 1.0f + __expf(-x)) * up);
      PutRow(y);
      *narrow_ = y;
      return 0.0f;
    }
    const float y = x + old_;
    if (call_.epilogue == Epilogue::kAdd) {
      const __nv_bfloat16 rounded = __float2bfloat16(y);
      PutRow(rounded);
      *narrow_ = rounded;
    } else if (link_ != nullptr) {
      HandOver(static_cast<float*>(link_), y);
    } else if (call_.best != nullptr) {
      const uint64_t key = !isfinite(y) ? 0 : id_ < call_.n_best ? KeyOf(y, id_) : ~uint64_t{0};
      best_ = min(best_, key);
    }
    *wide_ = y;
    return y * y;
  }
  // What follows the row's last number, up to 16 bytes, is read with it.
  __device__ void PutRow(__nv_bfloat16 x) const {
    if (link_ == nullptr) return;
    auto* to = static_cast<__nv_bfloat16*>(link_);
    HandOver(to, x);
    for (int i = 1; i <= n_pads_; ++i) HandOver(to + i, __nv_bfloat16(0.0f));
  }

  // Of this block's columns, whose tiles were written one by one, summed over the lanes that share the row.
  __device__ void WriteSquare(float square) {
#pragma unroll
    for (int i = ProductShape::kTile / 2; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
    if (column_ != 0 || row_ >= n_rows_ || tile_ > 0) return;
    const int64_t piece = static_cast<int64_t>(row_) * call_.stats.n_pieces + blockIdx.x;
    if (links_.squares != nullptr) HandOver(links_.squares + piece, square);
    call_.stats.squares[piece] = square;
  }

  // The least of a tile's keys of a row: the lanes that share it, then the first of them.
  __device__ void WriteBest() const {
    if (call_.best == nullptr) return;
    uint64_t best = best_;
#pragma unroll
    for (int i = ProductShape::kTile / 2; i > 0; i /= 2) best = min(best, __shfl_xor_sync(~0u, best, i));
    if (InTile() != 0 || row_ >= n_rows_ || tile_ >= kTiles) return;
    atomicMin(reinterpret_cast<unsigned long long*>(call_.best + row_), best);
  }

  const SkinnyCall& call_;
  const ProductLinks& links_;
  Sums& shared_;
  uint64_t best_ = ~uint64_t{0};  // key of the thread's row
  const ProductShape shape_;
  const int n_rows_;
  const int warp_, lane_;
  const int begin_, end_;          // this block's columns
  const int tile_, row_, column_;  // of the thread's output, the column counted from the first tile's
  // Of the output that Aim found.
  bool has_ = false;
  int id_ = 0, n_pads_ = 0;
  float old_ = 0.0f;
  float* wide_ = nullptr;
  __nv_bfloat16* narrow_ = nullptr;
  void* link_ = nullptr;
};

// A warp's chunks of a stage, which are every kWarps-th: of the tile's first and second eight rows.
template <int kWarps>
struct ProductWeights {
  static constexpr int kChunks = ProductChunks(kWarps);
  uint4 low[kChunks], high[kChunks];

  __device__ void Load(uint32_t stage, int pitch, int n_chunks, int warp, int lane) {
    const uint32_t at = stage + lane / 4 * pitch + warp * ProductShape::kChunk * 2 + lane % 4 * 16;
    // Where the warp has no such chunk its rows are zero, and any weights do.
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const uint32_t from =
          at + (warp + i * kWarps < n_chunks ? i * kWarps : -warp) * ProductShape::kChunk * 2;
      low[i] = ptx::LoadShared(from), high[i] = ptx::LoadShared(from + 8 * pitch);
    }
  }
};

// kWarps warps share k. A lane's 16 bytes of a weight row are eight consecutive k: the operands of two
// m16n8k16, in an order of k that is the same for both factors. A: weight rows. B: input rows.
template <int kWarpsT>
class Product : public ProductOutput<8, kWarpsT, 1> {
 public:
  using Output = ProductOutput<8, kWarpsT, 1>;
  using Shared = typename Output::Sums;
  using Output::Output;

  // `ring_address`: what Ring::Next counts from. meanwhile(): once, when the rows have been asked for.
  template <class Ring, typename Meanwhile>
  __device__ void Run(Ring& ring, uint32_t ring_address, Meanwhile meanwhile) {
    if (begin_ == end_) return meanwhile();
    if (links_.awaits && n_rows_ > kRowsLookedAt) AwaitFirst();
    Rows rows[kHeldStages];
    LoadGroup(0, rows);
    meanwhile();
    Aim(begin_);
    float square = 0.0f;
    Weights weights;  // the first are read before the rows are there
    const auto next_stage = [&](int column, int stage) {
      const int bytes = shape_.bytes(min(shape_.columns, end_ - column));
      weights.Load(ring_address + ring.Next(bytes), shape_.pitch(), shape_.ChunksOf(stage), warp_, lane_);
    };
    next_stage(begin_, 0);
    Scale();
    Await(0, rows);
    int turn = 0;
    for (int column = begin_; column < end_; column += shape_.columns, turn ^= 1) {
      float sums[2][4] = {};
      for (int first = 0; first < shape_.n_stages; first += kHeldStages) {
        if (shape_.n_stages > kHeldStages && (first > 0 || column > begin_)) {
          LoadGroup(first, rows);
          Await(first, rows);
        }
#pragma unroll
        for (int i = 0; i < kHeldStages; ++i) {
          if (first + i >= shape_.n_stages) break;
          if (column > begin_ || first + i > 0) next_stage(column, first + i);
          Multiply(rows[i], weights, sums);
        }
      }
      PutSums(turn, sums);
      ptx::NamedBarrier(kBarrier, kThreads);
      ring.Release();
      square += Write(turn);
      Aim(column + shape_.columns);
    }
    if (call_.epilogue == Epilogue::kAdd) WriteSquare(square);
    WriteBest();
  }

 private:
  using Output::Aim, Output::begin_, Output::call_, Output::end_, Output::InputRow, Output::kBarrier,
      Output::kThreads, Output::kWarps, Output::lane_, Output::links_, Output::n_rows_, Output::Scale,
      Output::shape_, Output::shared_, Output::warp_, Output::Write, Output::WriteBest, Output::WriteSquare;
  static constexpr int kWarpChunks = ProductChunks(kWarps);
  static constexpr int kHeldStages = 6;  // whose input rows are in registers at once
  // Of so many all numbers are looked at until they are there; of more, one of each lane first, or looking
  // would take the weights' way.
  static constexpr int kRowsLookedAt = 2;
  struct Rows {
    uint4 x[kWarpChunks];
  };
  using Weights = ProductWeights<kWarps>;

  // f(stage of the group, chunk of this warp, where it is, whether it exists): kHeldStages stages
  // from `first` on. This warp's chunks are every kWarps-th.
  template <typename F>
  __device__ void ForEachChunk(int first, F f) const {
    uint32_t stage_chunks = shape_.stage_chunks;
    ptx::Opaque(stage_chunks);  // or all addresses would be kept from one look to the next
    const int row = lane_ / 4;
    const bool exists = row < n_rows_;
    const auto* at =
        static_cast<const __nv_bfloat16*>(call_.in) + InputRow(exists ? row : 0) * call_.in_stride;
#pragma unroll
    for (int s = 0; s < kHeldStages; ++s) {
      const int n = exists && first + s < shape_.n_stages ? shape_.ChunksOf(first + s) : 0;
      const int base = (first + s) * static_cast<int>(stage_chunks);
#pragma unroll
      for (int i = 0; i < kWarpChunks; ++i) {
        const int chunk = warp_ + i * kWarps;
        const int column = (base + chunk) * ProductShape::kChunk + lane_ % 4 * 8;
        f(s, i, at + column, chunk < n && column < call_.k);
      }
    }
  }
  // All at once: beside a stream of weights a load takes long.
  __device__ void LoadGroup(int first, Rows (&rows)[kHeldStages]) const {
    ForEachChunk(first, [&](int s, int i, const __nv_bfloat16* at, bool exists) {
      rows[s].x[i] = exists ? LookAt16Bytes(at) : make_uint4(0, 0, 0, 0);
    });
  }
  // Until all of them are there.
  __device__ void Await(int first, Rows (&rows)[kHeldStages]) const {
    if (!links_.awaits) return;
    bool absent;
    do {
      absent = false;
      ForEachChunk(first, [&](int s, int i, const __nv_bfloat16* at, bool exists) {
        if (!AnyAbsent(rows[s].x[i])) return;
        rows[s].x[i] = LookAt16Bytes(at), absent = true;
      });
    } while (__any_sync(~0u, absent));
  }
  // Until the lane's first is there.
  __device__ void AwaitFirst() const {
    const int column = warp_ * ProductShape::kChunk + lane_ % 4 * 8;
    if (lane_ / 4 < n_rows_ && column < call_.k) {
      const auto* at = static_cast<const __nv_bfloat16*>(call_.in) + InputRow(lane_ / 4) * call_.in_stride;
      while (AnyAbsent(LookAt16Bytes(at + column))) {
      }
    }
    __syncwarp();
  }

  __device__ void Multiply(const Rows& rows, const Weights& weights, float (&sums)[2][4]) const {
#pragma unroll
    for (int i = 0; i < kWarpChunks; ++i) {
      const uint4 &w = weights.low[i], &v = weights.high[i];
      const uint32_t low[4] = {w.x, v.x, w.y, v.y}, high[4] = {w.z, v.z, w.w, v.w};
      ptx::MultiplyAdd(sums[0], low, rows.x[i].x, rows.x[i].y);
      ptx::MultiplyAdd(sums[1], high, rows.x[i].z, rows.x[i].w);
    }
  }

  __device__ void PutSums(int turn, const float (&sums)[2][4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      shared_.sums[turn][warp_][lane_ % 4 * 2 + j % 2][lane_ / 4 + j / 2 * 8] = sums[0][j] + sums[1][j];
    }
  }
};

}  // namespace t6::cuda
