// One task of attention on one worker: a few rows straight from factors, several rows head by head, or many
// rows of one head expanded.
// AttentionScratch is a worker's private memory; everything else is shared and read only, but for the task's
// own slots.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backend/cpu/tpa_attention_kernels.h"
#include "engine/backend/cpu/tpa_attention_plan.h"
#include "engine/backend/params.h"

namespace t6::cpu {

inline constexpr int kMaxFactorRank = 64;  // of K and V
inline constexpr int kMostHeadPages = 16;  // of any shape

// Sizes that follow from the spec alone. Bytes of every scratch array are computed for operands of 4 bytes.
struct AttentionShape {
  explicit AttentionShape(const AttentionSpec& spec);

  int h, d, dp;  // dp: d rounded up to 32
  int rank_q, rank_k, rank_v;
  int n_query_vectors;   // rotated vectors of a row: R_Q of them, or h where the query is full
  int block_rows;        // rows whose heads are one left side of a product
  int block_m;           // block_rows * h, rounded up to kRowGroup
  int max_task_rows;     // of a FactorTask
  int max_head_pages;    // of one that goes head by head: what is prepared of them stays in a core's cache
  size_t store_floats;   // that storing a row needs
  size_t slot_floats;    // a partial: out [h][dp], max [h], sum [h]
  size_t scratch_bytes;  // of one worker

  int max_blocks() const { return (max_task_rows + block_rows - 1) / block_rows; }
};

// What every task of one Run reads.
struct AttentionRun {
  const AttentionKernels* kernels = nullptr;
  const AttentionShape* shape = nullptr;
  const TpaAttentionParams* params = nullptr;
  const int32_t* positions = nullptr;
  const float* queries = nullptr;  // of expanded tasks: [n_rows][n_query_vectors][dp] rotated and scaled
  float* slots = nullptr;          // [n_slots][slot_floats]
  const AttentionPlan* plan = nullptr;
  const StepPlan* step = nullptr;
  const StoreFactorsParams* store = nullptr;  // what tasks that store write; null: all is stored
  uint64_t serial = 0;                        // differs from run to run
};

// What a worker keeps from task to task.
struct alignas(64) WorkerState {
  // Whose queries its scratch holds.
  struct Rows {
    uint64_t serial = 0;
    int first = 0, n = 0;
    bool operator==(const Rows&) const = default;
  } formed;
};

// From this many rows on, kernels that can go head by head: a row then takes 2 h d multiply-adds a token
// instead of R_Q R_K (d + h) + R_V h d, and expanding a page costs as much as about four rows save. 0: never.
int HeadRowsOf(const AttentionKernels& kernels, const AttentionShape& shape);

// Rotates and scales the query vectors of one row: [n_query_vectors][dp]. The scale makes logits powers of 2.
void RotateQueries(const AttentionRun& run, int row, float* queries);
// Q = A_Q B_Q of one row, or its queries where they are full: [h][dp], which may be `queries` itself.
const float* MixQueries(const AttentionRun& run, int row, const float* queries, float* mixed);

// Bytes of one worker's scratch for each kind of task.
size_t FactorScratchBytes(const AttentionShape& shape);
size_t HeadScratchBytes(const AttentionShape& shape);
size_t ExpandScratchBytes(const AttentionShape& shape);

void RunHeadTask(const AttentionRun& run, const FactorTask& task, uint8_t* scratch, WorkerState* worker);
void RunFactorTask(const AttentionRun& run, const FactorTask& task, uint8_t* scratch, WorkerState* worker);
void RunExpandTask(const AttentionRun& run, const ExpandTask& task, uint8_t* scratch);
// Merges the row's partials and writes its output.
void FinishRow(const AttentionRun& run, int row);

}  // namespace t6::cpu
