// What the host hands a step's kernels besides attention's arrays, and how their types answer to the
// engine's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "engine/backend/backend.h"
#include "engine/backend/cuda/row_kernels.h"
#include "engine/backend/cuda/sampling_kernels.h"

namespace t6::cuda {

// What a captured step has room for: the power of two from n on, or all there may be.
int PowerOfTwoFrom(int n, int most);

// The step's arrays besides attention's, side by side in one copy. Offsets in bytes, a function of the two
// capacities alone, so that a captured graph finds them again.
struct StepArrays {
  StepArrays(int rows, int outputs) {
    const auto take = [this](size_t bytes) { return std::exchange(pages, pages + (bytes + 15) / 16 * 16); };
    sampling = take(outputs * sizeof(SampleRow));
    output_rows = take(outputs * sizeof(int32_t));
    token_ids = take(rows * sizeof(int32_t));
  }
  size_t sampling, output_rows, token_ids;
  size_t pages = 0;  // last: as many copies and clears as the step has
};

PageParts PartsOf(const PageLayout& layout);
SampleRow ToDevice(const SamplingRow& row);
TokenOutput FromDevice(const SampleResult& result);

}  // namespace t6::cuda
