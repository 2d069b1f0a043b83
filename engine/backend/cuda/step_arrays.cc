#include "engine/backend/cuda/step_arrays.h"

#include <algorithm>

#include "engine/backend/philox.h"

namespace t6::cuda {
namespace {

constexpr float kGreedyBelow = 1e-5f;  // temperatures, as on the CPU

}  // namespace

int PowerOfTwoFrom(int n, int most) {
  int power = 1;
  while (power < n) power *= 2;
  return std::min(power, most);
}

PageParts PartsOf(const PageLayout& layout) {
  PageParts parts;
  for (const PagePart& part : layout.parts()) {
    PageParts::Part& to = parts.parts[parts.n_parts++];
    to.offset = static_cast<int64_t>(part.offset), to.bytes = static_cast<int64_t>(part.bytes);
    to.row_bytes = part.width * static_cast<int>(SizeOf(part.dtype)), to.rows_per_rank = part.rows;
    to.element_bytes = static_cast<int>(SizeOf(part.dtype)), to.token_minor = part.token_minor;
  }
  parts.page_bytes = static_cast<int64_t>(layout.page_bytes());
  return parts;
}

SampleRow ToDevice(const SamplingRow& row) {
  SampleRow out;
  const bool draws = row.score_token < 0 && row.temperature >= kGreedyBelow;
  out.uniform = draws ? UniformDraw(row.seed, row.output_index) : 0.0;
  out.temperature = draws ? row.temperature : 0.0f;
  out.top_p = row.top_p, out.top_k = row.top_k;
  out.score_token = row.score_token, out.n_top = row.n_top, out.is_used = 1;
  return out;
}

TokenOutput FromDevice(const SampleResult& result) {
  TokenOutput output;
  output.token = result.token, output.logprob = result.logprob;
  for (int i = 0; i < result.n_top; ++i) {
    output.top.push_back({result.top_tokens[i], result.top_logprobs[i]});
  }
  return output;
}

}  // namespace t6::cuda
