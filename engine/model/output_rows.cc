#include "engine/model/output_rows.h"

#include "engine/base/page_tokens.h"

namespace t6 {

bool KeepOutputRows(const StepPlan& plan, StepPlan* outputs) {
  outputs->Clear();
  if (!plan.shared_prefixes.empty()) return false;
  bool saves = false;
  int output = 0;
  for (int s = 0; s < plan.n_sequences(); ++s) {
    const int end = plan.row_begin[s + 1];
    saves |= end - plan.row_begin[s] >= kMinRowsToKeepOutputs;
    if (output == plan.n_outputs() || plan.output_rows[output] >= end) continue;
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
  return saves;
}

}  // namespace t6
