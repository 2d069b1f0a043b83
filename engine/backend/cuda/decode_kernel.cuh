// The decode kernel of sm_90a. One persistent block walks its segments; a producer warp streams halves of
// pages into a ring of stages, consumer warps own 16 heads x kWarpTokens tokens each and keep a running
// softmax in registers. docs/kernels.md draws it and says what was measured.
#pragma once

#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {

// What the kernel reads besides the tensor maps.
struct DecodeParams {
  DecodePlan plan;
  const int32_t* page_ids;
  const float* qkv;
  const float* cos;
  const float* sin;
  DecodePartials partials;
  float* out;
  int n_heads, head_tiles, token_groups;
  int rank_q, rotary_dim, qkv_elements;
  int half_rows, stage_bytes, n_stages;
  float query_scale;  // log2(e) and every factor of the logits
  bool head_norm;     // then the combine writes all outputs
};

inline constexpr int kRingAlignment = 1024;  // of the copies' swizzle
inline constexpr int kMaxStages = 16;
inline constexpr int kTileHeads = 16;
inline constexpr int kConsumerBarrier = 1;
inline constexpr float kRescaleAbove = 8.0f;  // powers of two that weights may exceed 1 by before a rescale
inline constexpr float kNoMax = -1e30f;       // finite, or a fully masked group would form inf - inf

template <int kRankT, int kDimT, int kWarpTokensT, int kMaxWarpsT, int kBlocksT>
struct DecodeTraits {
  static constexpr int kRank = kRankT;              // R_K = R_V
  static constexpr int kDim = kDimT;                // d
  static constexpr int kWarpTokens = kWarpTokensT;  // of each page, to a warp
  static constexpr int kMaxThreads = kMaxWarpsT * 32;
  static constexpr int kBlocks = kBlocksT;                // per multiprocessor
  static constexpr int kSteps = kDim / 16;                // of a product over d, or pairs of its output tiles
  static constexpr int kGroups = kWarpTokens / 16;        // of 16 tokens
  static constexpr int kRankBytes = 64 * kDim * 2;        // one rank of B
  static constexpr int kHeadOffset = kRank * kRankBytes;  // A behind B
  static constexpr int kMergeStride = kDim + 8;  // floats; keeps fragments' stores free of bank conflicts
};

// Shared memory behind the ring of stages. The query and the warps' results are never alive at once.
template <class T>
struct Exchange {
  uint32_t barriers[2 * kMaxStages * 2];  // full, then empty, 8 bytes each
  // followed by: float merge[n_warps][16][kMergeStride], float2 max_sum[n_warps][16]
  static constexpr int kWarpBytes = 16 * (T::kMergeStride * 4 + 8);
  static int Bytes(int n_warps) { return static_cast<int>(sizeof(Exchange)) + n_warps * kWarpBytes; }
};

// The ring's place and turn. Producer and consumers each keep one, in step.
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance(int n_stages) {
    if (++stage == n_stages) stage = 0, parity ^= 1;
  }
};

template <class T>
struct BlockShared {
  unsigned char* ring;
  Exchange<T>* exchange;
  uint32_t ring_address, barrier_address;

  __device__ BlockShared(unsigned char* base, const DecodeParams& p)
      : ring(base), exchange(reinterpret_cast<Exchange<T>*>(base + p.n_stages * p.stage_bytes)) {
    ring_address = ptx::SharedAddress(ring);
    barrier_address = ptx::SharedAddress(exchange->barriers);
  }
  __device__ uint32_t Full(int stage) const { return barrier_address + stage * 8; }
  __device__ uint32_t Empty(int stage) const { return barrier_address + (kMaxStages + stage) * 8; }
  __device__ float* merge() const { return reinterpret_cast<float*>(exchange + 1); }
  __device__ float2* max_sum(int n_warps) const {
    return reinterpret_cast<float2*>(merge() + n_warps * 16 * T::kMergeStride);
  }
};

// --- producer
// ---------------------------------------------------------------------------------------------------------

template <class T>
__device__ void CopyHalf(const DecodeParams& p, const CUtensorMap* whole, const CUtensorMap* rest,
                         int64_t row, uint32_t destination, uint32_t barrier, uint64_t policy) {
  ptx::BarrierExpectBytes(barrier, p.half_rows * 128);
  int done = 0;
  for (; done + 256 <= p.half_rows; done += 256) {
    ptx::CopyBox(destination + done * 128, whole, 0, static_cast<int32_t>(row + done), barrier, policy);
  }
  if (done < p.half_rows) {
    ptx::CopyBox(destination + done * 128, rest, 0, static_cast<int32_t>(row + done), barrier, policy);
  }
}

// Streams the block's pages, key half then value half. All lanes walk; lane 0 issues.
template <class T>
__device__ void Produce(const DecodeParams& p, const CUtensorMap* whole, const CUtensorMap* rest,
                        const BlockShared<T>& shared, SegmentRange range, int lane) {
  const uint64_t policy = ptx::EvictFirstPolicy();
  RingPosition at;
  for (int index = range.begin; index < range.end; ++index) {
    const DecodeSegment segment = p.plan.segments[index];
    for (int base = 0; base < segment.n_pages; base += 32) {
      const int n = min(32, segment.n_pages - base);
      const int32_t id = lane < n ? p.page_ids[segment.page_offset + base + lane] : 0;
      for (int i = 0; i < n; ++i) {
        const int64_t row = static_cast<int64_t>(__shfl_sync(~0u, id, i)) * 2 * p.half_rows;
        // The kernel in front may still be writing this step's token.
        if (segment.holds_newest && base + i == segment.n_pages - 1) ptx::WaitForPriorKernels();
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
          if (lane == 0) {
            ptx::BarrierWait(shared.Empty(at.stage), at.parity ^ 1);
            CopyHalf<T>(p, whole, rest, row + half * p.half_rows,
                        shared.ring_address + at.stage * p.stage_bytes, shared.Full(at.stage), policy);
          }
          at.Advance(p.n_stages);
        }
        __syncwarp();
      }
    }
  }
}

// --- consumers
// --------------------------------------------------------------------------------------------------------

// Where a lane finds its row of the 8 x 8 matrices that ldmatrix takes, in a stage that the copy has
// swizzled: the 16-byte chunk of a 128-byte row is exchanged by the row's number modulo 8. B's rows are d
// numbers of one token.
template <int kDim>
struct TokenRows {
  // Of chunk 0 or 1 of a token's row.
  __device__ static uint32_t Offset(int token, int chunk) {
    const int byte = token * kDim * 2 + chunk * 16;
    return byte ^ ((byte >> 3) & 0x70);
  }
  // The address of chunk + 2 * step: exclusive-or on the bits that the swizzle touches is the whole sum below
  // 128 bytes.
  __device__ static uint32_t Step(uint32_t address, int step) {
    if constexpr (kDim <= 64) return address ^ (step << 5);
    return ((address ^ ((step & 3) << 5)) ^ ((step >> 2) << 4)) + (step >> 2) * 128;
  }
};

// Writes the scaled, rotated query of every head as bfloat16 rows [head tiles * 16][d + 8]: the padding
// spreads ldmatrix's rows over all banks. Heads past the last are zero.
template <class T>
__device__ void FormQuery(const DecodeParams& p, const DecodeSegment& segment, __nv_bfloat16* query, int warp,
                          int lane, int n_warps) {
  constexpr int kStride = T::kDim + 8, kHeads = 4;
  const float* q = p.qkv + static_cast<int64_t>(segment.row) * p.qkv_elements;
  const float* b = q + p.n_heads * p.rank_q;
  const int half = p.rotary_dim / 2;
  const int n_padded = p.head_tiles * kTileHeads;
  for (int pair = lane; pair < T::kDim / 2; pair += 32) {
    // Two numbers that rotate together, or two neighbours that do not rotate.
    const bool rotates = pair < half;
    const int first = rotates ? pair : p.rotary_dim + 2 * (pair - half);
    const int second = rotates ? pair + half : first + 1;
    const int64_t angle = static_cast<int64_t>(segment.position) * half + pair;
    const float c = rotates ? p.cos[angle] : 1.0f, s = rotates ? p.sin[angle] : 0.0f;
    for (int head0 = warp * kHeads; head0 < n_padded; head0 += n_warps * kHeads) {
      float x1[kHeads] = {}, x2[kHeads] = {};
      if (p.rank_q == 0) {
#pragma unroll
        for (int k = 0; k < kHeads; ++k) {
          if (head0 + k >= p.n_heads) break;
          x1[k] = q[(head0 + k) * T::kDim + first], x2[k] = q[(head0 + k) * T::kDim + second];
        }
      } else {
#pragma unroll 4
        for (int r = 0; r < p.rank_q; ++r) {
          const float b1 = b[r * T::kDim + first], b2 = b[r * T::kDim + second];
#pragma unroll
          for (int k = 0; k < kHeads; ++k) {
            const float a = head0 + k < p.n_heads ? q[(head0 + k) * p.rank_q + r] : 0.0f;
            x1[k] = fmaf(a, b1, x1[k]), x2[k] = fmaf(a, b2, x2[k]);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kHeads; ++k) {
        __nv_bfloat16* row = query + (head0 + k) * kStride;
        row[first] = __float2bfloat16((x1[k] * c + x2[k] * s) * p.query_scale);
        row[second] = __float2bfloat16((x2[k] * c - x1[k] * s) * p.query_scale);
      }
    }
  }
}

// A warp's share of a segment: 16 heads x kWarpTokens tokens of every page. Registers hold the query, the
// running maximum and sum of each lane's two heads, and the output. Fragments are those of mma.m16n8k16: lane
// l has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
template <class T>
struct ConsumerWarp {
  static constexpr int kGroups = T::kGroups;

  uint32_t query[T::kSteps][4];
  float out[T::kDim / 8][4];
  float weight[kGroups][2][4];  // logits, then weights, of one page: [16 tokens][8 tokens][fragment]
  float max[2], sum[2];
  uint32_t key_offset, value_offset, head_offset[T::kRank];

  __device__ ConsumerWarp(const DecodeParams& p, int head_tile, int token_group, int lane) {
    const int token = token_group * T::kWarpTokens, row = lane & 7, low = (lane >> 3) & 1, high = lane >> 4;
    key_offset = TokenRows<T::kDim>::Offset(token + high * 8 + row, low);
    value_offset = TokenRows<T::kDim>::Offset(token + low * 8 + row, high);
#pragma unroll
    for (int r = 0; r < T::kRank; ++r) {
      const int byte = (r * p.n_heads + head_tile * kTileHeads + low * 8 + row) * 128 + token * 2 + high * 16;
      head_offset[r] = T::kHeadOffset + (byte ^ ((byte >> 3) & 0x70));
    }
  }

  __device__ void Start(uint32_t query_address, int head_tile, int lane) {
    constexpr int kStrideBytes = (T::kDim + 8) * 2;
    const uint32_t address =
        query_address + (head_tile * kTileHeads + (lane & 15)) * kStrideBytes + (lane >> 4) * 16;
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) ptx::LoadMatrices(query[step], address + step * 32);
#pragma unroll
    for (int i = 0; i < T::kDim / 8; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
    max[0] = max[1] = kNoMax;
    sum[0] = sum[1] = 0.0f;
  }

  // weight = sum over r of a_K,r * (Q B_K,r^T).
  __device__ void Score(uint32_t stage) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      float(&logits)[2][4] = weight[group];
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) {
        const uint32_t keys = stage + key_offset + r * T::kRankBytes + group * 16 * T::kDim * 2;
        uint32_t a[4];
        ptx::LoadMatrices(a, (stage + head_offset[r]) ^ (group << 5));
        float s[2][4] = {};
#pragma unroll
        for (int step = 0; step < T::kSteps; ++step) {
          uint32_t b[4];
          ptx::LoadMatrices(b, TokenRows<T::kDim>::Step(keys, step));
          ptx::MultiplyAdd(s[0], query[step], b[0], b[1]);
          ptx::MultiplyAdd(s[1], query[step], b[2], b[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // a's matrices: heads 0..7 and 8..15 of tokens 0..7, then of 8..15
          float* l = &logits[i / 2][i % 2 * 2];
          const float* product = &s[i / 2][i % 2 * 2];
          const float low = ptx::LowBf16(a[i]), high = ptx::HighBf16(a[i]);
          l[0] = r == 0 ? low * product[0] : fmaf(low, product[0], l[0]);
          l[1] = r == 0 ? high * product[1] : fmaf(high, product[1], l[1]);
        }
      }
    }
  }

  // Logits of tokens from `valid` on, counted from the warp's first, become -inf: whatever stood there, NaN
  // included.
  __device__ void Mask(int valid, int lane) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = group * 16 + i / 4 * 8 + (lane & 3) * 2 + i % 2;
        if (token >= valid) weight[group][i / 4][i % 4] = -INFINITY;
      }
    }
  }

  // Logits become weights 2^(logit - max). The maximum moves only when it has to, so that no lane asks its
  // neighbours on most pages.
  __device__ void Weigh() {
    float most[2] = {weight[0][0][0], weight[0][0][2]};
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) most[i % 4 / 2] = fmaxf(most[i % 4 / 2], weight[group][i / 4][i % 4]);
    }
    if (__any_sync(~0u, most[0] > max[0] + kRescaleAbove || most[1] > max[1] + kRescaleAbove)) Rescale(most);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& w = weight[group][i / 4][i % 4];
        w = ptx::Exp2(w - max[i % 4 / 2]);
        sum[i % 4 / 2] += w;
      }
    }
  }

  __device__ void Rescale(float (&most)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 1));
      most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 2));
      const float risen = fmaxf(max[i], most[i]);
      const float factor = ptx::Exp2(max[i] - risen);
      max[i] = risen;
      sum[i] *= factor;
#pragma unroll
      for (int n = 0; n < T::kDim / 8; ++n) out[n][2 * i] *= factor, out[n][2 * i + 1] *= factor;
    }
  }

  // out += (weight * a_V,r) B_V,r. kMasked: factors of tokens from `valid` on are taken as 0, or 0 * NaN
  // would spread.
  template <bool kMasked>
  __device__ void Accumulate(uint32_t stage, int valid, int lane) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      uint32_t keep[2] = {~0u, ~0u};  // of this lane's token pairs
      if constexpr (kMasked) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = group * 16 + i * 8 + (lane & 3) * 2;
          keep[i] = (token < valid ? 0xffffu : 0u) | (token + 1 < valid ? 0xffff0000u : 0u);
        }
      }
#pragma unroll
      for (int r = 0; r < T::kRank; ++r) {
        const uint32_t values = stage + value_offset + r * T::kRankBytes + group * 16 * T::kDim * 2;
        uint32_t a[4], w[4];
        ptx::LoadMatrices(a, (stage + head_offset[r]) ^ (group << 5));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (kMasked) a[i] &= keep[i / 2];
          const float* p = &weight[group][i / 2][i % 2 * 2];
          w[i] = ptx::PackBf16(p[0] * ptx::LowBf16(a[i]), p[1] * ptx::HighBf16(a[i]));
        }
#pragma unroll
        for (int step = 0; step < T::kSteps; ++step) {
          uint32_t b[4];
          ptx::LoadMatricesTransposed(b, TokenRows<T::kDim>::Step(values, step));
          if constexpr (kMasked) {
#pragma unroll
            for (int i = 0; i < 4; ++i) b[i] &= keep[i % 2];
          }
          ptx::MultiplyAdd(out[2 * step], w, b[0], b[1]);
          ptx::MultiplyAdd(out[2 * step + 1], w, b[2], b[3]);
        }
      }
    }
  }

  // The warp's result to shared memory: out rows, and (max, sum) of each head.
  __device__ void Publish(float* merge, float2* max_sum, int lane) {
    const int row = lane >> 2, column = (lane & 3) * 2;
#pragma unroll
    for (int n = 0; n < T::kDim / 8; ++n) {
      float* to = merge + row * T::kMergeStride + n * 8 + column;
      *reinterpret_cast<float2*>(to) = make_float2(out[n][0], out[n][1]);
      *reinterpret_cast<float2*>(to + 8 * T::kMergeStride) = make_float2(out[n][2], out[n][3]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
      sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
      if ((lane & 3) == 0) max_sum[row + 8 * i] = make_float2(max[i], sum[i]);
    }
  }
};

// Adds the token groups' results of every head and writes the segment's: the output itself where it is the
// sequence's only segment, else a partial.
template <class T>
__device__ void MergeGroups(const DecodeParams& p, const DecodeSegment& segment, int index,
                            const float* merge, const float2* max_sum, int thread, int n_threads) {
  constexpr int kQuads = T::kDim / 4;
  const bool writes_output = segment.is_whole && !p.head_norm;
  for (int item = thread; item < p.n_heads * kQuads; item += n_threads) {
    const int head = item / kQuads, column = item % kQuads * 4;
    const int warp0 = head / kTileHeads * p.token_groups, row = head % kTileHeads;
    float most = kNoMax;
    for (int g = 0; g < p.token_groups; ++g) most = fmaxf(most, max_sum[(warp0 + g) * 16 + row].x);
    float total = 0.0f;
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int g = 0; g < p.token_groups; ++g) {
      const float2 ms = max_sum[(warp0 + g) * 16 + row];
      const float factor = ptx::Exp2(ms.x - most);
      const float4 o =
          *reinterpret_cast<const float4*>(merge + ((warp0 + g) * 16 + row) * T::kMergeStride + column);
      total = fmaf(factor, ms.y, total);
      out.x = fmaf(factor, o.x, out.x), out.y = fmaf(factor, o.y, out.y);
      out.z = fmaf(factor, o.z, out.z), out.w = fmaf(factor, o.w, out.w);
    }
    if (writes_output) {
      const float scale = 1.0f / (total * T::kRank);
      float4* to = reinterpret_cast<float4*>(
          p.out + (static_cast<int64_t>(segment.row) * p.n_heads + head) * T::kDim + column);
      *to = make_float4(out.x * scale, out.y * scale, out.z * scale, out.w * scale);
    } else {
      const int64_t slot = static_cast<int64_t>(index) * p.n_heads + head;
      *reinterpret_cast<float4*>(p.partials.out + slot * T::kDim + column) = out;
      if (column == 0) p.partials.max_sum[slot] = make_float2(most, total);
    }
  }
}

template <class T>
__device__ void Consume(const DecodeParams& p, const BlockShared<T>& shared, SegmentRange range, int warp,
                        int lane) {
  const int n_warps = p.head_tiles * p.token_groups, n_threads = n_warps * 32;
  const int head_tile = warp / p.token_groups, token_group = warp % p.token_groups;
  const int first_token = token_group * T::kWarpTokens;
  ConsumerWarp<T> own(p, head_tile, token_group, lane);
  RingPosition at;
  int release = -1;  // the stage that was read last

  // A stage goes back one wait later: the assembler moves an arrival above the products whose operands it
  // frees, but nothing over a wait's loop.
  const auto next_stage = [&]() -> uint32_t {
    ptx::BarrierWait(shared.Full(at.stage), at.parity);
    if (release >= 0 && lane == 0) ptx::BarrierArrive(shared.Empty(release));
    release = at.stage;
    const uint32_t stage = shared.ring_address + at.stage * p.stage_bytes;
    at.Advance(p.n_stages);
    return stage;
  };

  ptx::WaitForPriorKernels();  // for the query; and the partials' last readers are done
  for (int index = range.begin; index < range.end; ++index) {
    const DecodeSegment segment = p.plan.segments[index];
    if (segment.n_pages == 0) continue;
    FormQuery<T>(p, segment, reinterpret_cast<__nv_bfloat16*>(shared.merge()), warp, lane, n_warps);
    ptx::NamedBarrier(kConsumerBarrier, n_threads);
    own.Start(ptx::SharedAddress(shared.merge()), head_tile, lane);
    ptx::NamedBarrier(kConsumerBarrier, n_threads);

    const int n_full = segment.n_pages - (segment.last_tokens < 64 ? 1 : 0);
    for (int page = 0; page < n_full; ++page) {
      own.Score(next_stage());
      own.Weigh();
      own.template Accumulate<false>(next_stage(), 64, lane);
    }
    if (n_full < segment.n_pages) {
      const int valid = segment.last_tokens - first_token;
      own.Score(next_stage());
      own.Mask(valid, lane);
      own.Weigh();
      own.template Accumulate<true>(next_stage(), valid, lane);
    }

    float2* max_sum = shared.max_sum(n_warps);
    own.Publish(shared.merge() + warp * 16 * T::kMergeStride, max_sum + warp * 16, lane);
    ptx::NamedBarrier(kConsumerBarrier, n_threads);
    MergeGroups<T>(p, segment, index, shared.merge(), max_sum, warp * 32 + lane, n_threads);
    ptx::NamedBarrier(kConsumerBarrier, n_threads);
  }
}

template <class T>
__global__ void __launch_bounds__(T::kMaxThreads, T::kBlocks)
    DecodeAttention(const __grid_constant__ DecodeParams p, const __grid_constant__ CUtensorMap whole,
                    const __grid_constant__ CUtensorMap rest) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const BlockShared<T> shared(shared_memory, p);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n_consumers = p.head_tiles * p.token_groups;
  const bool produces = warp == n_consumers;
  const SegmentRange range = p.plan.blocks[blockIdx.x];

  if (produces && lane == 0) {
    ptx::PrefetchTensorMap(&whole);
    ptx::PrefetchTensorMap(&rest);
    for (int i = 0; i < p.n_stages; ++i) {
      ptx::BarrierInit(shared.Full(i), 1);
      ptx::BarrierInit(shared.Empty(i), n_consumers);
    }
    ptx::BarrierInitFence();
  }
  ptx::LetDependentsLaunch();
  __syncthreads();

  if (produces) {
    Produce<T>(p, &whole, &rest, shared, range, lane);
  } else {
    Consume<T>(p, shared, range, warp, lane);
  }
}

}  // namespace t6::cuda
