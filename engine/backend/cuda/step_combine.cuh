// Adds one head's partial results of one sequence in the step kernel, where they appear while it runs
// (exchange.cuh), also that of a sequence with a single segment.
#pragma once

#include "engine/backend/cuda/decode_combine.cuh"
#include "engine/backend/cuda/exchange.cuh"

namespace t6::cuda {

// kThreads threads, each with four columns of every kLanes-th partial. The order of every addition is fixed
// by the number of partials and kThreads alone.
template <int kDim, int kThreads>
class StepCombiner {
 public:
  static constexpr int kQuads = kDim / 4, kLanes = kThreads / kQuads;
  static_assert(kLanes >= 1);
  struct Shared {
    float4 outs[kLanes][kQuads];
    float maxima[kLanes], sums[kLanes], squares[kDim / 32];
  };

  // sync(): among the kThreads threads.
  template <typename Sync>
  __device__ static void Run(const CombineParams& p, const DecodeSequence& sequence, int head, int thread,
                             Shared& shared, Sync sync) {
    if (sequence.n_segments == 0) return;
    const int quad = thread % kQuads, lane = thread / kQuads;
    PartialSum own;
    if (lane < kLanes) own = AddPartials(p, sequence, head, quad, lane);
    if (lane < kLanes && quad == 0) shared.maxima[lane] = own.max;
    sync();
    float most = kNone;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) most = fmaxf(most, shared.maxima[i]);
    if (lane < kLanes) {
      own.ScaleTo(most);
      shared.outs[lane][quad] = own.out;
      if (quad == 0) shared.sums[lane] = own.sum;
    }
    sync();
    WriteColumns(p, static_cast<int64_t>(sequence.row) * p.n_heads + head, thread, shared, sync);
  }

 private:
  static constexpr int kLoads = 5;  // partials that a thread asks for before it uses the first
  static constexpr float kNone = PartialSum::kNone;
  static constexpr int kColumns = kDim > kThreads ? kDim / kThreads : 1;  // of a thread, at the end

  __device__ static PartialSum AddPartials(const CombineParams& p, const DecodeSequence& sequence, int head,
                                           int quad, int lane) {
    PartialSum own;
    for (int base = lane; base < sequence.n_segments; base += kLanes * kLoads) {
      float2 max_sum[kLoads];
      float4 o[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = base + i * kLanes;
        const int64_t slot = static_cast<int64_t>(sequence.first_segment + k) * p.n_heads + head;
        const bool exists = k < sequence.n_segments;
        const float2* max_sum_at = p.partials.max_sum + slot;
        const float4* out_at = reinterpret_cast<const float4*>(p.partials.out + slot * kDim) + quad;
        max_sum[i] = make_float2(kNone, 0.0f), o[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (!exists) continue;
        max_sum[i] = LookAt(max_sum_at), o[i] = LookAt(out_at);
      }
      bool absent;
      do {  // all that are absent at once
        absent = false;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          const int64_t slot =
              static_cast<int64_t>(sequence.first_segment + base + i * kLanes) * p.n_heads + head;
          if (!AnyAbsent(max_sum[i]) && !AnyAbsent(o[i])) continue;
          max_sum[i] = LookAt(p.partials.max_sum + slot), absent = true;
          o[i] = LookAt(reinterpret_cast<const float4*>(p.partials.out + slot * kDim) + quad);
        }
      } while (absent);
      own.Add(max_sum, o);
    }
    return own;
  }

  template <typename Sync>
  __device__ static void WriteColumns(const CombineParams& p, int64_t row, int thread, Shared& shared,
                                      Sync sync) {
    float value[kColumns] = {}, square = 0.0f, total = 0.0f;
    const bool writes = thread < kDim;
    if (writes) {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) total += shared.sums[i];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          value[c] += reinterpret_cast<const float*>(shared.outs[i])[thread + c * kThreads];
        }
        value[c] /= total * p.rank;
        square += value[c] * value[c];
      }
    }
    if (p.head_norm_weight != nullptr) {
#pragma unroll
      for (int i = 16; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
      if constexpr (kThreads > 32) {
        if (writes && thread % 32 == 0) shared.squares[thread / 32] = square;
        sync();
        square = 0.0f;
#pragma unroll
        for (int i = 0; i < kDim / 32; ++i) square += shared.squares[i];
      }
      const float scale = rsqrtf(square / kDim + p.head_norm_eps);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (writes) value[c] *= scale * p.head_norm_weight[thread + c * kThreads];
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (writes) p.out.Store(row * kDim + thread + c * kThreads, value[c]);
    }
  }
};

}  // namespace t6::cuda
