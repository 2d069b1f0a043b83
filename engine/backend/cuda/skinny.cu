#include <algorithm>

#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/skinny.h"

namespace t6::cuda {
namespace {

constexpr int kWarps = 12;  // that multiply; beside them a warp that asks for weights, and some that write
constexpr int kChunk = 32;  // of k: 16 bytes of each of four lanes
constexpr int kTile = 8;    // weight rows of a stage: the columns of one product
constexpr int kWarpChunks = 5;    // of a stage, at most
constexpr int kStageChunks = 53;  // at most, below kWarps * kWarpChunks: three stages are half an SM's memory
constexpr int kStages = 3;
constexpr int kWriterBarrier = 1;
constexpr int kPieces = 5;  // of a row's squares, asked for at once by each lane

__device__ void CopyBytes(uint32_t shared, const void* from, uint32_t bytes, uint32_t barrier,
                          uint64_t policy) {
#if T6_PTX_HAS_SM90
  ptx::CopyBytes(shared, from, bytes, barrier, policy);
#endif
}
__device__ void ExpectBytes(uint32_t barrier, uint32_t bytes) {
#if T6_PTX_HAS_SM90
  ptx::BarrierExpectBytes(barrier, bytes);
#endif
}

// How k is cut into stages, and where a stage's rows lie in shared memory.
struct StageLayout {
  int chunks, n_stages, stage_chunks;

  __host__ __device__ explicit StageLayout(int k_stride) {
    chunks = k_stride / kChunk;
    n_stages = (chunks + kStageChunks - 1) / kStageChunks;
    stage_chunks = (chunks + n_stages - 1) / n_stages;
  }
  // An odd number of 64 bytes: eight lanes that read together meet all banks.
  __host__ __device__ int pitch() const { return (stage_chunks | 1) * kChunk * 2; }
  __host__ __device__ int bytes() const { return kTile * pitch(); }
};

// A block has a run of output columns, eight (SwiGlu: four pairs) at a time; its warps share k. A lane's 16
// bytes of a weight row are eight consecutive k: the operands of two m16n8k16, in an order of k that is the
// same for both factors. A: input rows, 8 of 16; B: weight rows. Sums pass to the writing warps through one
// of two places, so that nobody waits for the norm, the residual or the store.
template <Epilogue kEpilogue>
class SkinnyBlock {
 public:
  static constexpr int kRows = kMaxSkinnyRows;
  static constexpr int kChains = 2;  // of products, so that each does not wait for the last
  static constexpr bool kIsSwiGlu = kEpilogue == Epilogue::kSwiGlu;
  static constexpr int kColumns = kIsSwiGlu ? kTile / 2 : kTile;
  static constexpr int kOutputs = kRows * kColumns;  // a thread each
  static constexpr int kWriters = kOutputs / 32;
  static constexpr int kThreads = (kWarps + kWriters + 1) * 32;

  struct Shared {
    float sums[2][kWarps][kRows][kTile];
    float scale[kRows];
    alignas(8) uint64_t full[kStages], empty[kStages], sums_full[2], sums_empty[2];
  };

  __device__ SkinnyBlock(const SkinnyCall& call, Shared& shared, uint32_t ring)
      : call_(call),
        shared_(shared),
        layout_(call.k_stride),
        ring_(ring),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {
    begin_ = static_cast<int>(static_cast<int64_t>(blockIdx.x) * call.n / gridDim.x);
    end_ = static_cast<int>(static_cast<int64_t>(blockIdx.x + 1) * call.n / gridDim.x);
    n_items_ = (end_ - begin_ + kColumns - 1) / kColumns * layout_.n_stages;
  }

  __device__ void Run() {
    const bool produces = warp_ == kWarps + kWriters;
    if (produces) {
      if (lane_ == 0) InitBarriers();
      __syncwarp();
      for (int item = 0; item < min(kStages, n_items_); ++item) Fill(item);
    }
    ptx::LetDependentsLaunch();
    __syncthreads();  // the barriers are there
    if (produces) {
      for (int item = kStages; item < n_items_; ++item) {
        ptx::BarrierWait(Address(shared_.empty[item % kStages]), (item / kStages - 1) & 1);
        Fill(item);
      }
      return;
    }
    ptx::WaitForPriorKernels();
    if (warp_ < kWarps) {
      MultiplyAll();
    } else {
      WriteAll();
    }
  }

 private:
  __device__ static uint32_t Address(uint64_t& barrier) { return ptx::SharedAddress(&barrier); }
  __device__ void InitBarriers() {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      ptx::BarrierInit(Address(shared_.full[i]), 1);
      ptx::BarrierInit(Address(shared_.empty[i]), kWarps);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      ptx::BarrierInit(Address(shared_.sums_full[i]), kWarps);
      ptx::BarrierInit(Address(shared_.sums_empty[i]), kWriters);
    }
    ptx::BarrierInitFence();
  }
  __device__ void Arrive(uint64_t& barrier) {  // a warp
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(Address(barrier));
  }

  __device__ void MultiplyAll() {
    uint4 rows[kWarpChunks];
    LoadRows(0, rows);
    float sums[kChains][4] = {};
    for (int item = 0, slot = 0, parity = 0, stage = 0, tile = 0; item < n_items_; ++item) {
      ptx::BarrierWait(Address(shared_.full[slot]), parity);
      // A slot goes back one wait later: the assembler may move an arrival above the products whose operands
      // it frees, but nothing over a wait's loop.
      if (item > 0) Arrive(shared_.empty[slot == 0 ? kStages - 1 : slot - 1]);
      Multiply(rows, slot, StageChunks(stage), sums);
      const bool last = ++stage == layout_.n_stages;
      if (last) {
        const int turn = tile & 1;
        if (tile > 1) ptx::BarrierWait(Address(shared_.sums_empty[turn]), (tile / 2 - 1) & 1);
        PutSums(turn, sums);
        Arrive(shared_.sums_full[turn]);
        stage = 0, ++tile;
      }
      if (layout_.n_stages > 1 && item + 1 < n_items_) LoadRows(stage, rows);
      if (++slot == kStages) slot = 0, parity ^= 1;
    }
  }

  __device__ void WriteAll() {
    Scale();
    float old = LoadOld(begin_);
    for (int column = begin_, tile = 0; column < end_; column += kColumns, ++tile) {
      const int turn = tile & 1;
      ptx::BarrierWait(Address(shared_.sums_full[turn]), (tile / 2) & 1);
      const float x = SumOf(turn, Column()), up = kIsSwiGlu ? SumOf(turn, Column() + kColumns) : 0.0f;
      Arrive(shared_.sums_empty[turn]);
      Write(column, x, up, old);
      old = LoadOld(column + kColumns);
    }
    if constexpr (kEpilogue == Epilogue::kAdd) {
      if (Column() == 0 && Row() < call_.n_rows) {
        call_.stats.squares[static_cast<int64_t>(Row()) * call_.stats.n_pieces + blockIdx.x] = square_;
      }
    }
  }

  __device__ int StageChunks(int stage) const {
    return min(layout_.stage_chunks, layout_.chunks - stage * layout_.stage_chunks);
  }

  // Asks for an item's weight rows, a lane a row.
  __device__ void Fill(int item) {
    const int slot = item % kStages, stage = item % layout_.n_stages;
    const int column = begin_ + item / layout_.n_stages * kColumns, n = min(kColumns, end_ - column);
    const uint32_t bytes = StageChunks(stage) * kChunk * 2;
    if (lane_ == 0) ExpectBytes(Address(shared_.full[slot]), bytes * n * (kIsSwiGlu ? 2 : 1));
    __syncwarp();
    if (lane_ >= kTile || lane_ % kColumns >= n) return;
    const int64_t row = column + lane_ % kColumns + (lane_ >= kColumns ? call_.up_row : 0);
    const auto* from = static_cast<const __nv_bfloat16*>(call_.weight) + row * call_.k_stride +
                       stage * layout_.stage_chunks * kChunk;
    CopyBytes(ring_ + slot * layout_.bytes() + lane_ * layout_.pitch(), from, bytes,
              Address(shared_.full[slot]), ptx::EvictFirstPolicy());
  }

  __device__ const __nv_bfloat16* InputRow(int row) const {
    const int64_t from = call_.row_index != nullptr ? call_.row_index[row] : row;
    return static_cast<const __nv_bfloat16*>(call_.in) + from * call_.in_stride;
  }
  // This warp's chunks of a stage: every kWarps-th.
  __device__ void LoadRows(int stage, uint4 (&rows)[kWarpChunks]) const {
    const int n = StageChunks(stage), first = stage * layout_.stage_chunks;
    const int row = lane_ / 4;
    const bool exists = row < call_.n_rows;
    const __nv_bfloat16* at = InputRow(exists ? row : 0);
#pragma unroll
    for (int i = 0; i < kWarpChunks; ++i) {
      const int chunk = warp_ + i * kWarps, column = (first + chunk) * kChunk + lane_ % 4 * 8;
      rows[i] =
          exists && chunk < n && column < call_.k ? ptx::LoadChanging16(at + column) : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ void Multiply(const uint4 (&rows)[kWarpChunks], int slot, int n_chunks,
                           float (&sums)[kChains][4]) const {
    const uint32_t at =
        ring_ + slot * layout_.bytes() + lane_ / 4 * layout_.pitch() + warp_ * kChunk * 2 + lane_ % 4 * 16;
#pragma unroll
    for (int i = 0; i < kWarpChunks; ++i) {
      if (warp_ + i * kWarps >= n_chunks) break;
      const uint4 w = ptx::LoadShared(at + i * kWarps * kChunk * 2);
      const uint32_t a0[4] = {rows[i].x, 0, rows[i].y, 0};
      const uint32_t a1[4] = {rows[i].z, 0, rows[i].w, 0};
      ptx::MultiplyAdd(sums[0], a0, w.x, w.y);
      ptx::MultiplyAdd(sums[1], a1, w.z, w.w);
    }
  }

  // The rows' norms, a writing warp a row.
  __device__ void Scale() {
    if (call_.squares == nullptr) return;
    for (int row = warp_ - kWarps; row < call_.n_rows; row += kWriters) {
      const int64_t from = call_.row_index != nullptr ? call_.row_index[row] : row;
      const float* pieces = call_.squares + from * call_.n_pieces;
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
    ptx::NamedBarrier(kWriterBarrier, kWriters * 32);
  }

  // The thread's output.
  __device__ int Row() const { return (threadIdx.x - kWarps * 32) / kColumns; }
  __device__ int Column() const { return threadIdx.x % kColumns; }
  __device__ bool HasOutput(int column) const { return Row() < call_.n_rows && column + Column() < end_; }
  __device__ float* Out(int column) const {
    return static_cast<float*>(call_.out) + static_cast<int64_t>(Row()) * call_.out_stride + column +
           Column();
  }
  __device__ float LoadOld(int column) const {
    if constexpr (kEpilogue != Epilogue::kAdd) return 0.0f;
    return HasOutput(column) ? *static_cast<const volatile float*>(Out(column)) : 0.0f;
  }

  __device__ void PutSums(int turn, float (&sums)[kChains][4]) {
    *reinterpret_cast<float2*>(&shared_.sums[turn][warp_][lane_ / 4][lane_ % 4 * 2]) =
        make_float2(sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[0][i] = sums[1][i] = 0.0f;
  }
  __device__ float SumOf(int turn, int column) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared_.sums[turn][w][Row()][column];
    return sum;
  }

  // x: the sum (SwiGlu: gate's), without norm.
  __device__ void Write(int column, float x, float up, float old) {
    const float scale = call_.squares != nullptr && Row() < call_.n_rows ? shared_.scale[Row()] : 1.0f;
    if constexpr (kIsSwiGlu) {
      if (!HasOutput(column)) return;
      const float gate = x * scale;
      static_cast<__nv_bfloat16*>(
          call_.out)[static_cast<int64_t>(Row()) * call_.out_stride + column + Column()] =
          __float2bfloat16(gate / (1.0f + __expf(-gate)) * up * scale);
    } else {
      const float y = x * scale + old;
      if (HasOutput(column)) *Out(column) = y;
      if constexpr (kEpilogue == Epilogue::kAdd) WriteStats(column, HasOutput(column) ? y : 0.0f);
    }
  }

  __device__ void WriteStats(int column, float x) {
    float square = x * x;
#pragma unroll
    for (int i = kColumns / 2; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
    if (HasOutput(column)) {
      static_cast<__nv_bfloat16*>(
          call_.stats.rows)[static_cast<int64_t>(Row()) * call_.stats.stride + column + Column()] =
          __float2bfloat16(x);
    }
    square_ += square;
  }

  const SkinnyCall& call_;
  Shared& shared_;
  const StageLayout layout_;
  const uint32_t ring_;
  const int warp_, lane_;
  int begin_, end_;      // this block's columns
  int n_items_;          // stages of all its tiles
  float square_ = 0.0f;  // of this block's columns of the thread's row
};

template <Epilogue kEpilogue>
__global__ void __launch_bounds__(SkinnyBlock<kEpilogue>::kThreads, 2)
    Skinny(const __grid_constant__ SkinnyCall call) {
  using Block = SkinnyBlock<kEpilogue>;
  extern __shared__ __align__(128) uint8_t ring[];
  __shared__ typename Block::Shared shared;
  Block(call, shared, ptx::SharedAddress(ring)).Run();
}

struct Instance {
  void (*kernel)(SkinnyCall);
  int n_threads;
};

Instance Choose(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::kSwiGlu:
      return {&Skinny<Epilogue::kSwiGlu>, SkinnyBlock<Epilogue::kSwiGlu>::kThreads};
    case Epilogue::kAdd:
      return {&Skinny<Epilogue::kAdd>, SkinnyBlock<Epilogue::kAdd>::kThreads};
    default:
      return {&Skinny<Epilogue::kStore>, SkinnyBlock<Epilogue::kStore>::kThreads};
  }
}

int Blocks(int n, int n_sms) { return std::min(n_sms, (n + kSkinnyColumns - 1) / kSkinnyColumns); }

}  // namespace

int SkinnyPieces(int width, int n_sms) { return Blocks(width, n_sms); }

cudaError_t LaunchSkinny(const SkinnyCall& call, int n_sms, cudaStream_t stream) {
  if (call.n_rows == 0 || call.n == 0) return cudaSuccess;
  const Instance instance = Choose(call.epilogue);
  const int shared_bytes = kStages * StageLayout(call.k_stride).bytes();
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(instance.kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  return LaunchOverlapped(instance.kernel, dim3(Blocks(call.n, n_sms)), instance.n_threads, shared_bytes,
                          stream, call);
}

}  // namespace t6::cuda
