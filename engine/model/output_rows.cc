#include "engine/model/output_rows.h"

#include <vector>

#include "engine/base/page_tokens.h"

namespace t6 {
namespace {

bool HasManyRows(const StepPlan& plan) {
  for (int s = 0; s < plan.n_sequences(); ++s) {
    if (plan.row_begin[s + 1] - plan.row_begin[s] >= kMinRowsToKeepOutputs) return true;
  }
  return false;
}

}  // namespace

bool KeepOutputRows(const StepPlan& plan, StepPlan* outputs) {
  if (!HasManyRows(plan)) return false;  // as of every step of decode: its pages are not copied
  outputs->Clear();
  std::vector<int32_t> first_output(1, 0);  // of each sequence, and behind the last
  int output = 0;
  for (int s = 0; s < plan.n_sequences(); ++s) {
    const int end = plan.row_begin[s + 1];
    first_output.push_back(output);
    if (output == plan.n_outputs() || plan.output_rows[output] >= end) continue;
    ++first_output.back();
    const int row = plan.output_rows[output++];
    if (output < plan.n_outputs() && plan.output_rows[output] < end) return false;
    const int context = plan.positions[row] + 1;
    const auto first = plan.page_ids.begin() + plan.page_begin[s];
    outputs->token_ids.push_back(0);
    outputs->positions.push_back(plan.positions[row]);
    outputs->slots.push_back(plan.slots[row]);
    outputs->context_len.push_back(context);
    outputs->page_ids.insert(outputs->page_ids.end(), first,
                             first + (context + kPageTokens - 1) / kPageTokens);
    outputs->row_begin.push_back(outputs->n_rows());
    outputs->page_begin.push_back(static_cast<int32_t>(outputs->page_ids.size()));
    outputs->output_rows.push_back(outputs->n_rows() - 1);
  }
  for (const SharedPrefix& prefix : plan.shared_prefixes) {
    const int first = first_output[prefix.first_sequence];
    const int n = first_output[prefix.first_sequence + prefix.n_sequences] - first;
    if (n > 1) outputs->shared_prefixes.push_back({first, n, prefix.n_pages});
  }
  return true;
}

}  // namespace t6
