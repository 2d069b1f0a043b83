#include <algorithm>

#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/skinny.h"

namespace t6::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kChunk = 32;  // of k: 16 bytes of each of four lanes
constexpr int kLoadsInFlight = 8;
constexpr uint32_t kPrefetchPiece = 2048;

__device__ uint4 LoadWeights(const void* p) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p));
  return x;
}
// Written by kernels that may have been running when this one started.
__device__ uint4 LoadActivations(const void* p) {
  uint4 x;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p)
               : "memory");
  return x;
}
__device__ void PrefetchToL2(const void* p, uint32_t bytes) {
#if T6_PTX_HAS_SM90
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#endif
}

// A block has a run of tiles of kColumnTiles * 8 columns; its warps share k. A lane's 16 bytes of a weight
// row are eight consecutive k: the operands of two m16n8k16, in an order of k that is the same for both
// factors. A: input rows (M, 8 or 16), B: weight rows (N).
template <int kRowTiles, int kColumnTiles, Epilogue kEpilogue>
class SkinnyBlock {
 public:
  static constexpr int kBatch = kLoadsInFlight / kColumnTiles;  // chunks
  static constexpr int kRows = kRowTiles * 8;
  static constexpr bool kIsSwiGlu = kEpilogue == Epilogue::kSwiGlu;
  static constexpr int kTileColumns = kIsSwiGlu ? 8 : kColumnTiles * 8;  // of the output
  static constexpr int kOutputs = kRows * kTileColumns;
  static_assert(!kIsSwiGlu || kColumnTiles == 2);

  struct Shared {
    float sums[2][kWarps][kColumnTiles][kRows][8];
    float scale[kRows];
  };

  __device__ SkinnyBlock(const SkinnyCall& call, Shared& shared)
      : call_(call), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    const int n_tiles = (call.n + kTileColumns - 1) / kTileColumns;
    tile_ = static_cast<int>(static_cast<int64_t>(blockIdx.x) * n_tiles / gridDim.x);
    end_tile_ = static_cast<int>(static_cast<int64_t>(blockIdx.x + 1) * n_tiles / gridDim.x);
    const int chunks = call.k_stride / kChunk, share = (chunks + kWarps - 1) / kWarps;
    begin_ = min(chunks, warp_ * share), end_ = min(chunks, begin_ + share);
    n_batches_ = (share + kBatch - 1) / kBatch;
    batch_chunks_ = (share + n_batches_ - 1) / n_batches_;
  }

  __device__ void Run() {
    uint4 weights[kColumnTiles][kBatch];
    Load(tile_, 0, weights);
    ptx::LetDependentsLaunch();
    ptx::WaitForPriorKernels();
    const int n_items = (end_tile_ - tile_) * n_batches_;
    if (n_items == n_batches_) PrefetchNext();
    float sums[kColumnTiles][kRowTiles][4] = {};
    float old = 0.0f;
    for (int item = 0, batch = 0; item < n_items; ++item) {
      if (batch == 0) old = LoadOld();
      uint4 rows[kRowTiles][kBatch];
      LoadRows(batch, rows);
      if (item == 0) Scale();
      uint4 next[kColumnTiles][kBatch];
      const bool last_of_tile = batch + 1 == n_batches_;
      if (item + 1 < n_items) Load(tile_ + last_of_tile, last_of_tile ? 0 : batch + 1, next);
      if (item + 1 == n_items && n_items != n_batches_) PrefetchNext();
      Multiply(rows, weights, sums);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) weights[j][i] = next[j][i];
      }
      if (last_of_tile) {
        Finish(sums, old);
        ++tile_, batch = 0;
      } else {
        ++batch;
      }
    }
  }

 private:
  __device__ int WeightRow(int tile, int j) const {
    const int within = lane_ / 4;
    return kIsSwiGlu ? tile * 8 + within + j * call_.up_row : (tile * kColumnTiles + j) * 8 + within;
  }
  __device__ int FirstChunk(int batch) const { return begin_ + batch * batch_chunks_; }
  __device__ int EndChunk(int batch) const { return min(end_, FirstChunk(batch) + batch_chunks_); }

  __device__ void Load(int tile, int batch, uint4 (&weights)[kColumnTiles][kBatch]) const {
    const int first = FirstChunk(batch), n = EndChunk(batch) - first;
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      const auto* row = static_cast<const __nv_bfloat16*>(call_.weight) +
                        static_cast<int64_t>(WeightRow(tile, j)) * call_.k_stride + first * kChunk +
                        lane_ % 4 * 8;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        weights[j][i] = i < n && tile < end_tile_ ? LoadWeights(row + i * kChunk) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ void LoadRows(int batch, uint4 (&rows)[kRowTiles][kBatch]) const {
    const int first = FirstChunk(batch), n = EndChunk(batch) - first;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = m * 8 + lane_ / 4, column = first * kChunk + lane_ % 4 * 8;
      const bool exists = row < call_.n_rows;
      const int64_t from = exists && call_.row_index != nullptr ? call_.row_index[row] : row;
      const auto* at = static_cast<const __nv_bfloat16*>(call_.in) + from * call_.in_stride + column;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        rows[m][i] = exists && i < n && column + i * kChunk < call_.k ? LoadActivations(at + i * kChunk)
                                                                      : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ void Multiply(const uint4 (&rows)[kRowTiles][kBatch],
                           const uint4 (&weights)[kColumnTiles][kBatch],
                           float (&sums)[kColumnTiles][kRowTiles][4]) const {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const uint4 low = rows[0][i];
      const uint4 high = kRowTiles == 2 ? rows[kRowTiles - 1][i] : make_uint4(0, 0, 0, 0);
      const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
      const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        float c[4] = {sums[j][0][0], sums[j][0][1], sums[j][kRowTiles - 1][2], sums[j][kRowTiles - 1][3]};
        ptx::MultiplyAdd(c, a0, weights[j][i].x, weights[j][i].y);
        ptx::MultiplyAdd(c, a1, weights[j][i].z, weights[j][i].w);
        sums[j][0][0] = c[0], sums[j][0][1] = c[1];
        sums[j][kRowTiles - 1][2] = c[2], sums[j][kRowTiles - 1][3] = c[3];
      }
    }
  }

  // The rows' norms, a warp a row.
  __device__ void Scale() {
    if (call_.squares == nullptr) return;
    for (int row = warp_; row < call_.n_rows; row += kWarps) {
      const int64_t from = call_.row_index != nullptr ? call_.row_index[row] : row;
      const volatile float* pieces = call_.squares + from * call_.n_pieces;
      float square = 0.0f;
#pragma unroll 8
      for (int i = lane_; i < call_.n_pieces; i += 32) square += pieces[i];
#pragma unroll
      for (int i = 16; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
      if (lane_ == 0) {
        shared_.scale[row] = 1.0f / sqrtf(square / static_cast<float>(call_.norm_width) + call_.norm_eps);
      }
    }
  }

  // The thread's output: row and column of the tile.
  __device__ int Row() const { return threadIdx.x % kOutputs / 8 % kRows; }
  __device__ int Column() const {
    return tile_ * kTileColumns + threadIdx.x / (8 * kRows) * 8 + threadIdx.x % 8;
  }
  __device__ bool HasOutput() const {
    return threadIdx.x < kOutputs && Row() < call_.n_rows && Column() < call_.n;
  }
  __device__ float* Out() const {
    return static_cast<float*>(call_.out) + static_cast<int64_t>(Row()) * call_.out_stride + Column();
  }
  __device__ float LoadOld() const {
    if constexpr (kEpilogue != Epilogue::kAdd) return 0.0f;
    return HasOutput() ? *static_cast<const volatile float*>(Out()) : 0.0f;
  }

  __device__ float SumOf(int j) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared_.sums[turn_][w][j][Row()][threadIdx.x % 8];
    return sum;
  }

  __device__ void Finish(float (&sums)[kColumnTiles][kRowTiles][4], float old) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        *reinterpret_cast<float2*>(&shared_.sums[turn_][warp_][j][m * 8 + lane_ / 4][lane_ % 4 * 2]) =
            make_float2(sums[j][m][2 * m], sums[j][m][2 * m + 1]);
        sums[j][m][2 * m] = sums[j][m][2 * m + 1] = 0.0f;
      }
    }
    __syncthreads();
    if (threadIdx.x < kOutputs) Write(old);
    turn_ ^= 1;  // the next tile's sums go where nobody reads
  }

  __device__ void Write(float old) const {
    const float scale = call_.squares != nullptr && Row() < call_.n_rows ? shared_.scale[Row()] : 1.0f;
    if constexpr (kIsSwiGlu) {
      const float gate = SumOf(0) * scale, up = SumOf(1) * scale;
      if (!HasOutput()) return;
      static_cast<__nv_bfloat16*>(call_.out)[static_cast<int64_t>(Row()) * call_.out_stride + Column()] =
          __float2bfloat16(gate / (1.0f + __expf(-gate)) * up);
    } else {
      const float x = SumOf(threadIdx.x / (8 * kRows)) * scale + old;
      if (HasOutput()) *Out() = x;
      if constexpr (kEpilogue == Epilogue::kAdd) WriteStats(HasOutput() ? x : 0.0f);
    }
  }

  __device__ void WriteStats(float x) const {
    float square = x * x;
#pragma unroll
    for (int i = 4; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
    const int row = Row(), column = Column();
    if (row >= call_.n_rows) return;
    if (column < call_.stats.stride) {
      static_cast<__nv_bfloat16*>(call_.stats.rows)[static_cast<int64_t>(row) * call_.stats.stride + column] =
          __float2bfloat16(x);
    }
    if (column % 8 == 0 && column / 8 < call_.stats.n_pieces) {
      call_.stats.squares[static_cast<int64_t>(row) * call_.stats.n_pieces + column / 8] = square;
    }
  }

  __device__ void PrefetchNext() const {
    const size_t share = (call_.next_bytes / gridDim.x + 15) / 16 * 16;
    const size_t begin = blockIdx.x * share;
    if (begin >= call_.next_bytes) return;
    const size_t end = begin + share < call_.next_bytes ? begin + share : call_.next_bytes;
    for (size_t at = begin + threadIdx.x * kPrefetchPiece; at < end; at += kThreads * kPrefetchPiece) {
      const size_t left = end - at;
      PrefetchToL2(static_cast<const uint8_t*>(call_.next_weight) + at,
                   left < kPrefetchPiece ? static_cast<uint32_t>(left) : kPrefetchPiece);
    }
  }

  const SkinnyCall& call_;
  Shared& shared_;
  const int warp_, lane_;
  int tile_, end_tile_;
  int begin_, end_;               // this warp's chunks
  int n_batches_, batch_chunks_;  // the same for every warp
  int turn_ = 0;
};

template <int kRowTiles, int kColumnTiles, Epilogue kEpilogue>
__global__ void __launch_bounds__(kThreads, 2) Skinny(const __grid_constant__ SkinnyCall call) {
  using Block = SkinnyBlock<kRowTiles, kColumnTiles, kEpilogue>;
  __shared__ typename Block::Shared shared;
  Block(call, shared).Run();
}

using Kernel = void (*)(SkinnyCall);

struct Choice {
  Kernel kernel;
  int tile_columns;
};

// Wide tiles read the rows fewer times, narrow ones spread over more blocks.
template <int kRowTiles>
Choice Choose(Epilogue epilogue, bool wide) {
  switch (epilogue) {
    case Epilogue::kSwiGlu:
      return {&Skinny<kRowTiles, 2, Epilogue::kSwiGlu>, 8};
    case Epilogue::kAdd:
      return wide ? Choice{&Skinny<kRowTiles, 2, Epilogue::kAdd>, 16}
                  : Choice{&Skinny<kRowTiles, 1, Epilogue::kAdd>, 8};
    default:
      return wide ? Choice{&Skinny<kRowTiles, 2, Epilogue::kStore>, 16}
                  : Choice{&Skinny<kRowTiles, 1, Epilogue::kStore>, 8};
  }
}

}  // namespace

cudaError_t LaunchSkinny(const SkinnyCall& call, int n_sms, cudaStream_t stream) {
  if (call.n_rows == 0 || call.n == 0) return cudaSuccess;
  constexpr int kBlocksPerSm = 2;
  const int most = n_sms * kBlocksPerSm;
  const bool wide = call.n_rows > 8 || call.n > most * 16;
  const Choice choice = call.n_rows > 8 ? Choose<2>(call.epilogue, wide) : Choose<1>(call.epilogue, wide);
  const int n_tiles = (call.n + choice.tile_columns - 1) / choice.tile_columns;
  const int tiles_per_block = (n_tiles + most - 1) / most;
  const int n_blocks = (n_tiles + tiles_per_block - 1) / tiles_per_block;
  return LaunchOverlapped(choice.kernel, dim3(n_blocks), kThreads, stream, call);
}

}  // namespace t6::cuda
