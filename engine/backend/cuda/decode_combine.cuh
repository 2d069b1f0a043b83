// Adds one head's partial results of one sequence, by a block or by a warp.
#pragma once

#include "engine/backend/cuda/decode_attention.h"
#include "engine/backend/cuda/ptx.cuh"

namespace t6::cuda {

struct CombineParams {
  const DecodeSequence* sequences;
  DecodePartials partials;
  AttentionOutput out;
  const float* head_norm_weight;  // null: no norm
  float head_norm_eps;
  int n_heads;
  float rank;  // R_V
};
CombineParams MakeCombineParams(const DecodeCall& call);

// A share of a sum of weighted values, relative to a maximum: four columns.
struct PartialSum {
  static constexpr float kNone = -1e30f;  // the maximum of nothing
  float max = kNone, sum = 0.0f;
  float4 out = {0.0f, 0.0f, 0.0f, 0.0f};

#ifdef __CUDACC__
  __device__ void ScaleTo(float most) {
    const float factor = ptx::Exp2(max - most);
    max = most, sum *= factor;
    out.x *= factor, out.y *= factor, out.z *= factor, out.w *= factor;
  }
  // One that is not above the maximum.
  __device__ void Add(float2 max_sum, const float4& o) {
    const float factor = ptx::Exp2(max_sum.x - max);
    sum = fmaf(factor, max_sum.y, sum);
    out.x = fmaf(factor, o.x, out.x), out.y = fmaf(factor, o.y, out.y);
    out.z = fmaf(factor, o.z, out.z), out.w = fmaf(factor, o.w, out.w);
  }
  // All at once, so that their powers do not wait for each other.
  template <int kN>
  __device__ void Add(const float2 (&max_sum)[kN], const float4 (&o)[kN]) {
    float most = max;
#pragma unroll
    for (int i = 0; i < kN; ++i) most = fmaxf(most, max_sum[i].x);
    ScaleTo(most);
#pragma unroll
    for (int i = 0; i < kN; ++i) Add(max_sum[i], o[i]);
  }
#endif
};

// kThreads threads, each with four columns of every kLanes-th partial; of a head's columns, one part of
// kParts. Lanes of a warp meet by shuffles, warps in shared memory. The order of every addition is fixed by
// the number of partials and the template's arguments alone.
template <int kDim, int kThreads, int kParts = 1>
class Combiner {
 public:
  static constexpr int kQuads = kDim / 4 / kParts, kLanes = kThreads / kQuads, kWarps = kThreads / 32;
  static_assert(kQuads <= 32 && 32 % kQuads == 0);
  struct Shared {
    float4 outs[kWarps][kQuads];
    float2 max_sums[kWarps];
  };

  // sync(): among the kThreads threads. `part`: 0 where a head is to be normed.
  template <typename Sync>
  __device__ static void Run(const CombineParams& p, const DecodeSequence& sequence, int head, int thread,
                             Shared& shared, Sync sync, int part = 0) {
    if (sequence.n_segments == 0 || (sequence.n_segments == 1 && p.head_norm_weight == nullptr)) return;
    const int quad = thread % kQuads, column = (part * kQuads + quad) * 4;
    Running own = AddPartials(p, sequence, head, column, thread / kQuads);
    own.AddLanes();
    if constexpr (kWarps > 1) {
      if (thread % 32 < kQuads) shared.outs[thread / 32][quad] = own.out;
      if (thread % 32 == 0) shared.max_sums[thread / 32] = make_float2(own.max, own.sum);
      sync();
      if (thread >= 32) return;
      own = AddWarps(shared, quad);
    }
    Write(p, static_cast<int64_t>(sequence.row) * p.n_heads + head, column, thread < kQuads, own);
  }

 private:
  // Partials that a thread asks for before it uses the first: enough for one from each block of 132, as far
  // as registers go.
  static constexpr int kLoads = kLanes >= 16 ? (132 + kLanes - 1) / kLanes : 9;
  static constexpr float kNone = PartialSum::kNone;

  struct Running : PartialSum {
    // Those of a warp with the same columns: afterwards all have the sum.
    __device__ void AddLanes() {
      float most = max;
#pragma unroll
      for (int i = kQuads; i < 32; i *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, i));
      ScaleTo(most);
#pragma unroll
      for (int i = kQuads; i < 32; i *= 2) {
        sum += __shfl_xor_sync(~0u, sum, i);
        out.x += __shfl_xor_sync(~0u, out.x, i), out.y += __shfl_xor_sync(~0u, out.y, i);
        out.z += __shfl_xor_sync(~0u, out.z, i), out.w += __shfl_xor_sync(~0u, out.w, i);
      }
    }
  };

  __device__ static Running AddPartials(const CombineParams& p, const DecodeSequence& sequence, int head,
                                        int column, int lane) {
    Running own;
    for (int base = lane; base < sequence.n_segments; base += kLanes * kLoads) {
      float2 max_sum[kLoads];
      float4 o[kLoads];
      const int64_t first_slot = static_cast<int64_t>(sequence.first_segment + base) * p.n_heads + head;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const bool exists = base + i * kLanes < sequence.n_segments;
        const int64_t slot = first_slot + static_cast<int64_t>(i) * kLanes * p.n_heads;
        max_sum[i] = exists ? p.partials.max_sum[slot] : make_float2(kNone, 0.0f);
        o[i] = exists ? *reinterpret_cast<const float4*>(p.partials.out + slot * kDim + column)
                      : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
      own.Add(max_sum, o);
    }
    return own;
  }

  __device__ static Running AddWarps(const Shared& shared, int quad) {
    Running all;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) all.max = fmaxf(all.max, shared.max_sums[i].x);
#pragma unroll
    for (int i = 0; i < kWarps; ++i) all.Add(shared.max_sums[i], shared.outs[i][quad]);
    return all;
  }

  // A warp; the lanes of which `writes` holds have a head's columns, or a part's.
  __device__ static void Write(const CombineParams& p, int64_t row, int column, bool writes,
                               const Running& own) {
    float scale = 1.0f / (own.sum * p.rank);
    float4 x = make_float4(own.out.x * scale, own.out.y * scale, own.out.z * scale, own.out.w * scale);
    if (p.head_norm_weight != nullptr) {
      float square = x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
#pragma unroll
      for (int i = 1; i < kQuads; i *= 2) square += __shfl_xor_sync(~0u, square, i);
      scale = rsqrtf(square / kDim + p.head_norm_eps);
      const float4 weight = *reinterpret_cast<const float4*>(p.head_norm_weight + column);
      x = make_float4(x.x * scale * weight.x, x.y * scale * weight.y, x.z * scale * weight.z,
                      x.w * scale * weight.w);
    }
    if (writes) p.out.Store(row * kDim + column, x);
  }
};

}  // namespace t6::cuda
