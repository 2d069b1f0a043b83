#include <cuda_fp16.h>

#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/ptx.cuh"
#include "engine/backend/cuda/row_kernels.h"
#include "engine/base/page_tokens.h"

namespace t6::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float Load(const void* in, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBF16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(in)[i]);
    case DType::kF16:
      return __half2float(static_cast<const __half*>(in)[i]);
    default:
      return static_cast<const float*>(in)[i];
  }
}

__device__ void Store(void* out, DType dtype, int64_t i, float x) {
  if (dtype == DType::kBF16) {
    static_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16(x);
  } else {
    static_cast<float*>(out)[i] = x;
  }
}

// The sum over the block, in every thread, in a fixed order.
template <int kBlockThreads>
__device__ float BlockSum(float x) {
  __shared__ float sums[kBlockThreads / 32];
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  if constexpr (kBlockThreads == 32) return x;
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kBlockThreads / 32; ++i) sum += sums[i];
  return sum;
}

__global__ void __launch_bounds__(kThreads) Embed(const __grid_constant__ EmbedCall call) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const int row = blockIdx.x;
  int id = row;
  if (call.ids != nullptr) {
    id = call.ids[row];
    if (id < 0) id = call.sampled[-1 - id];
  }
  const int64_t from = static_cast<int64_t>(id) * call.width;
  const RowStats& stats = call.stats;
  auto* rounded = static_cast<__nv_bfloat16*>(stats.rows) + static_cast<int64_t>(row) * stats.stride;
  float square = 0.0f;
  for (int i = threadIdx.x; i < max(call.width, stats.stride); i += kThreads) {
    const float x = i < call.width ? Load(call.table, call.dtype, from + i) : 0.0f;
    if (call.out != nullptr && i < call.width) call.out[static_cast<int64_t>(row) * call.width + i] = x;
    if (i < stats.stride) rounded[i] = __float2bfloat16(x);
    square += x * x;
  }
  if (stats.rows == nullptr) return;
  const float sum = BlockSum<kThreads>(square);
  for (int i = threadIdx.x; i < stats.n_pieces; i += kThreads) {
    stats.squares[static_cast<int64_t>(row) * stats.n_pieces + i] = i == 0 ? sum : 0.0f;
  }
}

// kRowThreads threads a row: many for few rows, a warp for many. kVector numbers at a time; a row of up to
// 2048 by fours is read once.
template <int kRowThreads, int kVector>
__global__ void __launch_bounds__(kThreads) NormRows(const __grid_constant__ NormRowsCall call) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const int row = blockIdx.x * (kThreads / kRowThreads) + threadIdx.x / kRowThreads;
  const int thread = threadIdx.x % kRowThreads;
  if (row >= call.n_rows) return;  // whole warps; with one row a block, none
  const int64_t from = (call.row_index != nullptr ? call.row_index[row] : row) * call.in_stride;
  constexpr int kHeld = 512 / kRowThreads;
  float4 held[kHeld];
  float scale = 1.0f;
  if (call.norm.enabled) {
    float square = 0.0f;
    if constexpr (kVector == 4) {
      const auto* in = reinterpret_cast<const float4*>(static_cast<const float*>(call.in) + from);
      const auto squares = [](const float4& x) { return x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w; };
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int i = thread + k * kRowThreads;
        held[k] = i < call.k / 4 ? in[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
#pragma unroll
      for (int k = 0; k < kHeld; ++k) square += squares(held[k]);
      for (int i = thread + kHeld * kRowThreads; i < call.k / 4; i += kRowThreads) square += squares(in[i]);
    } else {
      for (int i = thread; i < call.k; i += kRowThreads) {
        const float x = Load(call.in, call.in_dtype, from + i);
        square += x * x;
      }
    }
    scale = 1.0f / sqrtf(BlockSum<kRowThreads>(square) / static_cast<float>(call.k) + call.norm.eps);
  }
  const int64_t to = static_cast<int64_t>(row) * call.out_stride;
  if constexpr (kVector == 4) {  // float32 in, bfloat16 out, no weight
    const auto* in = reinterpret_cast<const float4*>(static_cast<const float*>(call.in) + from);
    auto* out = reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(call.out) + to);
    const auto rounded = [scale](const float4& x) {
      return make_uint2(ptx::PackBf16(x.x * scale, x.y * scale), ptx::PackBf16(x.z * scale, x.w * scale));
    };
    int first = thread;
    if (call.norm.enabled) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (first < call.out_stride / 4) out[first] = rounded(held[k]);
        first += kRowThreads;
      }
    }
    for (int i = first; i < call.out_stride / 4; i += kRowThreads) {
      out[i] = rounded(i < call.k / 4 ? in[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
  } else {
    const float* weight = call.norm.enabled ? call.norm.weight : nullptr;
    for (int i = thread; i < call.out_stride; i += kRowThreads) {
      float x = i < call.k ? Load(call.in, call.in_dtype, from + i) * scale : 0.0f;
      if (weight != nullptr && i < call.k) x *= weight[i];
      Store(call.out, call.out_dtype, to + i, x);
    }
  }
}

// Rounded to bfloat16 next; where 1 + e^-x is beyond 2^126, this division gives the 0 that it should.
__device__ float Silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// Eight numbers an item; a thread has one of each half of them, so that four loads are on their way.
constexpr int kSwiGluItems = 2;
__global__ void __launch_bounds__(kThreads) SwiGluBf16(const __grid_constant__ SwiGluCall call) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const uint32_t per_row = call.width / 8, n = call.n_rows * per_row, step = gridDim.x * kThreads;
  const uint32_t first = blockIdx.x * kThreads + threadIdx.x;
  uint4 gate[kSwiGluItems], up[kSwiGluItems];
#pragma unroll
  for (int i = 0; i < kSwiGluItems; ++i) {
    const uint32_t item = min(first + i * step, n - 1), row = item / per_row;
    const auto* in = static_cast<const uint4*>(call.gate_up) + (static_cast<int64_t>(item) + row * per_row);
    gate[i] = in[0], up[i] = in[per_row];
  }
  const auto both = [](uint32_t g, uint32_t u) {
    return ptx::PackBf16(Silu(ptx::LowBf16(g)) * ptx::LowBf16(u), Silu(ptx::HighBf16(g)) * ptx::HighBf16(u));
  };
#pragma unroll
  for (int i = 0; i < kSwiGluItems; ++i) {
    if (first + i * step >= n) return;
    static_cast<uint4*>(call.out)[first + i * step] =
        make_uint4(both(gate[i].x, up[i].x), both(gate[i].y, up[i].y), both(gate[i].z, up[i].z),
                   both(gate[i].w, up[i].w));
  }
}

__global__ void __launch_bounds__(kThreads) SwiGluF32(const __grid_constant__ SwiGluCall call) {
  ptx::LetDependentsLaunch();
  ptx::WaitForPriorKernels();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= static_cast<int64_t>(call.n_rows) * call.width) return;
  const int64_t row = item / call.width, column = item % call.width;
  const float* in = static_cast<const float*>(call.gate_up) + row * 2 * call.width + column;
  const float gate = in[0];
  // expf, not its fast twin: float32 mode is held against float64.
  static_cast<float*>(call.out)[item] = gate / (1.0f + expf(-gate)) * in[call.width];
}

// A block an entry and layer: the first `valid` tokens of every part, zeros for the rest.
__global__ void __launch_bounds__(kThreads) CopyPages(const __grid_constant__ CopyPagesCall call) {
  const PageCopy copy = call.copies[blockIdx.x];
  uint8_t* layer = call.base + static_cast<int64_t>(blockIdx.y) * call.n_pages * call.layout.page_bytes;
  const uint8_t* from = layer + copy.source * call.layout.page_bytes;
  uint8_t* to = layer + copy.destination * call.layout.page_bytes;
  for (int p = 0; p < call.layout.n_parts; ++p) {
    const PageParts::Part& part = call.layout.parts[p];
    // In words of four bytes, which may hold numbers of several tokens.
    for (int word = threadIdx.x; word < part.bytes / 4; word += kThreads) {
      uint32_t value = reinterpret_cast<const uint32_t*>(from + part.offset)[word];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int byte = word * 4 + i, row = byte / part.row_bytes;
        const int token =
            part.token_minor ? byte % part.row_bytes / part.element_bytes : row % part.rows_per_rank;
        if (token >= copy.valid_tokens) value &= ~(0xffu << 8 * i);
      }
      reinterpret_cast<uint32_t*>(to + part.offset)[word] = value;
    }
  }
}

__global__ void __launch_bounds__(kThreads) ClearPages(const __grid_constant__ CopyPagesCall call) {
  auto* page = reinterpret_cast<uint4*>(
      call.base +
      (static_cast<int64_t>(blockIdx.y) * call.n_pages + call.clears[blockIdx.x]) * call.layout.page_bytes);
  for (int64_t i = threadIdx.x; i < call.layout.page_bytes / 16; i += kThreads) {
    page[i] = make_uint4(0, 0, 0, 0);
  }
}

__global__ void __launch_bounds__(kThreads) PackRows(const __grid_constant__ PackRowsCall call) {
  for (int64_t row = blockIdx.x; row < call.n_rows; row += gridDim.x) {
    for (int i = threadIdx.x; i < call.out_stride; i += kThreads) {
      Store(call.out, call.out_dtype, row * call.out_stride + i,
            i < call.k ? Load(call.in, call.in_dtype, row * call.k + i) : 0.0f);
    }
  }
}

int Blocks(int64_t items, int each) { return static_cast<int>((items + each - 1) / each); }

}  // namespace

cudaError_t LaunchEmbed(const EmbedCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  return LaunchOverlapped(&Embed, dim3(call.n_rows), kThreads, 0, stream, call);
}

cudaError_t LaunchNormRows(const NormRowsCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  constexpr int kManyRows = 2048;
  const bool many = call.n_rows >= kManyRows;
  const bool vectors = call.in_dtype == DType::kF32 && call.out_dtype == DType::kBF16 &&
                       call.norm.weight == nullptr && call.k % 4 == 0 && call.in_stride % 4 == 0 &&
                       call.out_stride % 4 == 0;
  const dim3 grid(many ? Blocks(call.n_rows, kThreads / 32) : call.n_rows);
  const auto kernel = many ? (vectors ? &NormRows<32, 4> : &NormRows<32, 1>)
                           : (vectors ? &NormRows<kThreads, 4> : &NormRows<kThreads, 1>);
  return LaunchOverlapped(kernel, grid, kThreads, 0, stream, call);
}

cudaError_t LaunchSwiGlu(const SwiGluCall& call, cudaStream_t stream) {
  const int64_t numbers = static_cast<int64_t>(call.n_rows) * call.width;
  if (numbers == 0) return cudaSuccess;
  if (call.dtype == DType::kBF16) {
    return LaunchOverlapped(&SwiGluBf16, dim3(Blocks(numbers / 8, kThreads * kSwiGluItems)), kThreads, 0,
                            stream, call);
  }
  return LaunchOverlapped(&SwiGluF32, dim3(Blocks(numbers, kThreads)), kThreads, 0, stream, call);
}

cudaError_t LaunchCopyPages(const CopyPagesCall& call, cudaStream_t stream) {
  if (call.n_copies > 0) CopyPages<<<dim3(call.n_copies, call.n_layers), kThreads, 0, stream>>>(call);
  if (call.n_clears > 0) ClearPages<<<dim3(call.n_clears, call.n_layers), kThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

cudaError_t LaunchPackRows(const PackRowsCall& call, cudaStream_t stream) {
  if (call.n_rows == 0) return cudaSuccess;
  constexpr int64_t kMostBlocks = 4096;
  PackRows<<<static_cast<int>(call.n_rows < kMostBlocks ? call.n_rows : kMostBlocks), kThreads, 0, stream>>>(
      call);
  return cudaGetLastError();
}

}  // namespace t6::cuda
