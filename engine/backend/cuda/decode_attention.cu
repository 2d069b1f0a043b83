#include <algorithm>

#include "engine/backend/cuda/chip.h"
#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/decode_combine.h"
#include "engine/backend/cuda/decode_instances.h"
#include "engine/backend/cuda/decode_kernel.cuh"
#include "engine/backend/cuda/launch.cuh"
#include "engine/backend/cuda/tensor_map.h"

namespace t6::cuda {
namespace {

constexpr int kMinStages = 2;
// Bytes that one multiprocessor asks for and waits for, at first and later.
constexpr int kFirstInFlight = 48 << 10, kMaxInFlight = 72 << 10;

constexpr int kReservedShared = 1024;  // of every block, by the driver

int RoundUp(int x, int to) { return (x + to - 1) / to * to; }

std::span<const DecodeInstance> InstancesFor(const DecodeShape& shape) {
  return shape.fp8 ? Fp8DecodeInstances() : DecodeInstancesOfRank(shape.rank);
}

// What kernels keep of a query's token in shared memory: A of all heads that there is room for, B (in
// the step kernel), and its factors for the pages.
int FactorBytes(const DecodeShape& shape, int n_heads) {
  return n_heads * RoundUp(shape.rank_q, 4) * 4 + shape.rank_q * shape.head_dim * 4 +
         2 * shape.rank * (shape.n_heads + shape.head_dim) * 4;
}

// Gives the ring what `exchange`, behind it, leaves of a multiprocessor's shared memory; false where that is
// too little.
bool FitRing(const DecodeDevice& device, int exchange, DecodeAttentionConfig* config) {
  const DecodeShape& shape = config->shape;
  // Heads of the last tile that do not exist read what lies behind the last row: keep it inside the stage.
  const int head_bytes = shape.fp8 ? 64 : 128, missing = config->head_tiles * kTileHeads - shape.n_heads;
  const int padded_rows = shape.half_rows() + (missing * head_bytes + 127) / 128;
  config->stage_bytes = RoundUp(padded_rows * 128, kRingAlignment);
  const int beside = config->combines_beside ? kCombineShared + kReservedShared : 0;
  const int shared = device.max_shared_per_sm - kReservedShared - beside - exchange;
  config->n_stages = std::min(shared / config->stage_bytes, kMaxStages);
  if (config->n_stages < kMinStages) return false;
  const int half_bytes = shape.half_rows() * 128;
  const auto halves = [&](int bytes) {
    return std::clamp((bytes + half_bytes - 1) / half_bytes, 2, config->n_stages);
  };
  config->first_in_flight = halves(kFirstInFlight), config->max_in_flight = halves(kMaxInFlight);
  config->exchange_bytes = exchange;
  config->shared_bytes = config->n_stages * config->stage_bytes + exchange;
  config->n_blocks = device.n_sms;
  return true;
}

std::optional<DecodeAttentionConfig> MakeForFp8(const DecodeShape& shape, const DecodeDevice& device) {
  if (shape.head_dim != 64) return std::nullopt;
  for (const Fp8HopperInstance& instance : Fp8HopperInstancesOfRank(shape.rank)) {
    if (instance.max_heads < shape.n_heads) continue;
    DecodeAttentionConfig config;
    config.shape = shape, config.kernel = instance.kernel;
    config.warp_tokens = 16, config.token_groups = 4;
    config.head_tiles = instance.max_heads / kTileHeads;
    config.n_threads = instance.n_threads;
    const int exchange =
        std::max(instance.exchange_bytes, instance.factor_offset + FactorBytes(shape, instance.max_heads));
    // Each warpgroup has a part of the ring, of a page at least.
    const int n_groups = instance.n_threads / 128 - 1;
    if (FitRing(device, exchange, &config) && config.n_stages >= 2 * n_groups) return config;
  }
  return std::nullopt;
}

// A pool of pages is a matrix of rows of 128 bytes.
cudaError_t MakeBoxMap(const DecodeShape& shape, const void* pages, int64_t n_pages, int box_rows,
                       CUtensorMap* map) {
  return MakeTensorMap(pages, n_pages * 2 * shape.half_rows(), 64, box_rows, map);
}

}  // namespace

int ExchangeBytes(int head_dim, int n_warps) {
  return 2 * kMaxStages * 8 + n_warps * 16 * (head_dim * 4 + 8);
}
static_assert(Exchange<DecodeTraits<1, 64, 16, 9>>::kWarpBytes == 16 * (64 * 4 + 8));

DecodeParams MakeDecodeParams(const DecodeCall& call) {
  const DecodeAttentionConfig& config = *call.config;
  const DecodeShape& shape = config.shape;
  constexpr float kLog2E = 1.4426950408889634f;
  return {.plan = call.plan,
          .page_ids = call.page_ids,
          .pages = call.pages,
          .qkv = call.qkv,
          .cos = call.cos,
          .sin = call.sin,
          .partials = call.partials,
          .out = call.out,
          .n_heads = shape.n_heads,
          .head_tiles = config.head_tiles,
          .rank_q = shape.rank_q,
          .rotary_dim = shape.rotary_dim,
          .qkv_stride = call.qkv_stride > 0 ? call.qkv_stride : shape.qkv_elements(),
          .half_rows = shape.half_rows(),
          .stage_bytes = config.stage_bytes,
          .n_stages = config.n_stages,
          .first_in_flight = config.first_in_flight,
          .max_in_flight = config.max_in_flight,
          .query_scale = shape.logit_scale * kLog2E,
          .head_norm = shape.head_norm,
          .stores = call.stores};
}

std::span<const DecodeInstance> DecodeInstancesOfRank(int rank) {
  switch (rank) {
    case 1:
      return DecodeInstances<1>();
    case 2:
      return DecodeInstances<2>();
    case 3:
      return DecodeInstances<3>();
    case 4:
      return DecodeInstances<4>();
    default:
      return {};
  }
}

cudaError_t DecodeDevice::Query(DecodeDevice* device) {
  int id = 0, major = 0;
  cudaError_t error = cudaGetDevice(&id);
  const auto read = [&](cudaDeviceAttr attribute, int* value) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, id);
  };
  read(cudaDevAttrComputeCapabilityMajor, &major);
  read(cudaDevAttrMultiProcessorCount, &device->n_sms);
  read(cudaDevAttrMaxSharedMemoryPerMultiprocessor, &device->max_shared_per_sm);
  device->portable = CodeForThisChip() != ChipCode::kHopper;
  return error == cudaSuccess && major < 8 ? cudaErrorNotSupported : error;
}

std::optional<DecodeAttentionConfig> DecodeAttentionConfig::Make(const DecodeShape& shape,
                                                                 const DecodeDevice& device) {
  if (shape.fp8 && !device.portable) return MakeForFp8(shape, device);
  for (const DecodeInstance& instance : InstancesFor(shape)) {
    if (instance.rank != shape.rank || instance.head_dim != shape.head_dim) continue;
    DecodeAttentionConfig config;
    config.shape = shape, config.portable = device.portable;
    config.combines_beside = instance.combines_beside && !device.portable;
    config.warp_tokens = instance.warp_tokens;
    config.head_tiles = (shape.n_heads + kTileHeads - 1) / kTileHeads;
    config.token_groups = 64 / instance.warp_tokens;
    const int n_warps = config.head_tiles * config.token_groups;
    if (n_warps + 1 > instance.max_warps) continue;
    config.n_threads = (n_warps + 1) * 32;
    config.kernel = device.portable ? instance.portable_kernel : instance.kernel;
    // The query's rows and all factors of its token lie where the warps' results will.
    const int n_heads = config.head_tiles * kTileHeads;
    const int query = n_heads * (shape.head_dim + 8) * 2 + FactorBytes(shape, n_heads);
    const int exchange =
        std::max(ExchangeBytes(shape.head_dim, n_warps), ExchangeBytes(shape.head_dim, 0) + query);
    if (!FitRing(device, exchange, &config)) continue;
    return config;
  }
  return std::nullopt;
}

cudaError_t MakePageMaps(const DecodeShape& shape, const void* pages, int64_t n_pages, PageMaps* maps) {
  const int rows = shape.half_rows(), rest = rows % 256;
  if (n_pages * 2 * rows > INT32_MAX) return cudaErrorInvalidValue;  // a box's coordinates are int32
  const cudaError_t error = MakeBoxMap(shape, pages, n_pages, std::min(rows, 256), &maps->whole);
  return error != cudaSuccess ? error
                              : MakeBoxMap(shape, pages, n_pages, rest == 0 ? 256 : rest, &maps->rest);
}

cudaError_t LaunchDecodeAttention(const DecodeCall& call, cudaStream_t stream) {
  const DecodeAttentionConfig& config = *call.config;
  cudaError_t error =
      cudaFuncSetAttribute(config.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, config.shared_bytes);
  if (error != cudaSuccess) return error;

  const OverlappedLaunch launch(dim3(config.n_blocks), config.n_threads, config.shared_bytes, stream,
                                call.overlaps_prior && !config.portable);
  DecodeParams params = MakeDecodeParams(call);
  PageMaps maps = config.portable ? PageMaps{} : *call.maps;
  void* arguments[] = {&params, &maps.whole, &maps.rest};  // a portable kernel takes the first
  error = cudaLaunchKernelExC(launch.config(), config.kernel, arguments);
  return error != cudaSuccess ? error : LaunchDecodeCombine(call, stream);
}

}  // namespace t6::cuda
