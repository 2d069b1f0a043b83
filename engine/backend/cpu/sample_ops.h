// Passes over one row of logits, vectorised by Highway. No state, any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/schedule/step_plan.h"

namespace t6::cpu {

inline constexpr int kSumBlock = 512;  // float sums of so many numbers are then added in double

struct RowScan {
  float max;
  bool finite;  // every number is
};
RowScan ScanRow(const float* x, int n);  // n >= 1

// The lowest index at which x is `value`, or n.
int32_t FirstIndexOf(const float* x, int n, float value);

// Sum of exp(x - max).
double SumExp(const float* x, int n, float max);

// weights[i] = exp((x[i] - max) * scale); sums of kSumBlock of them each.
void ExpRow(const float* x, int n, float max, float scale, float* weights, double* block_sums);

// Appends the indices at which x >= threshold, ascending.
void CollectAtLeast(const float* x, int n, float threshold, std::vector<int32_t>* indices);

// The n_top largest, largest first, ties by lowest index; logprob holds x itself.
void TopOfRow(const float* x, int n, int n_top, std::vector<TokenScore>* top);

}  // namespace t6::cpu
