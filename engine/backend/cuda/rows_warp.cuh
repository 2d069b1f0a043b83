// What a consumer warp of the rows kernels does whatever its keys and values come from: the 16 query rows of
// one head that it holds, as left operands, and what they see and give.
#pragma once

#include "engine/backend/cuda/prefill_softmax.cuh"
#include "engine/backend/cuda/rows_params.cuh"

namespace t6::cuda {

// Rows [first, first + 16) of a task for one head. A lane has rows l / 4 and l / 4 + 8 of them.
struct RowsWarp {
  const RowsParams& p;
  int row, lane;  // the lane's first row

  __device__ RowsWarp(const RowsParams& params, int first, int lane)
      : p(params), row(first + (lane >> 2)), lane(lane) {}

  // The query's fragments, 0 where there is no row.
  __device__ void LoadQuery(const RowsTask& task, int head, uint32_t (&query)[4][4]) const {
    const uint32_t* from =
        static_cast<const uint32_t*>(p.queries) +
        (static_cast<int64_t>(min(head, p.n_heads - 1)) * p.query_rows + task.row + row) * 32 + (lane & 3);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int down = i % 2 * 8;
        query[step][i] = row + down < task.n_rows ? from[down * 32 + step * 8 + i / 2 * 4] : 0;
      }
    }
  }

  // Scores of the 64 tokens from `token` on.
  __device__ void Mask(const RowsTask& task, int token, float (&score)[32]) const {
    const int first = token + (lane & 3) * 2;
    const int last = min(task.first_position + row * task.position_step, task.n_tokens - 1);
    const int second = min(task.first_position + (row + 8) * task.position_step, task.n_tokens - 1);
    MaskScores(score, last - first, second - first);
  }

  // The task's result: the output itself, or a partial one. rank: what the values are times.
  __device__ void Finish(const RowsTask& task, int head, const SoftmaxRows& rows, const float (&out)[32],
                         int rank) const {
    const bool is_partial = task.partial_row >= 0;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float total = rows.Total(k);
      if (row + 8 * k >= task.n_rows || head >= p.n_heads) continue;
      const int64_t slot =
          static_cast<int64_t>((is_partial ? task.partial_row : task.row) + row + 8 * k) * p.n_heads + head;
      if (is_partial) {
        if ((lane & 3) == 0) {
          p.partials.max_sum[slot] = make_float2(total > 0.0f ? rows.base[k] : kNoMax, total);
        }
        float* const to = p.partials.out + slot * 64;
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          const float* const x = out + 4 * i + 2 * k;
          *reinterpret_cast<float4*>(to + PlaceInPartial(8 * i + (lane & 3) * 2)) =
              make_float4(x[0], x[4], x[1], x[5]);
        }
        continue;
      }
      const int64_t at = slot * 64 + (lane & 3) * 2;
      const float scale = 1.0f / (total * rank);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = out[4 * i + 2 * k] * scale, y = out[4 * i + 2 * k + 1] * scale;
        if (p.out_is_bf16) {
          *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p.out) + at + 8 * i) = ptx::PackBf16(x, y);
        } else {
          *reinterpret_cast<float2*>(static_cast<float*>(p.out) + at + 8 * i) = make_float2(x, y);
        }
      }
    }
  }
};

}  // namespace t6::cuda
