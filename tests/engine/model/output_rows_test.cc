#include "engine/model/output_rows.h"

#include <gtest/gtest.h>

#include <vector>

namespace t6 {
namespace {

// Appends a sequence whose last `n` tokens are rows; its pages are `first_page` and the next ones.
void Add(int context, int n, int first_page, StepPlan* plan) {
  for (int i = 0; i < n; ++i) {
    const int position = context - n + i;
    plan->token_ids.push_back(7);
    plan->positions.push_back(position);
    plan->slots.push_back((first_page + position / 64) * 64 + position % 64);
  }
  plan->row_begin.push_back(plan->n_rows());
  plan->context_len.push_back(context);
  for (int page = 0; page < (context + 63) / 64; ++page) plan->page_ids.push_back(first_page + page);
  plan->page_begin.push_back(static_cast<int32_t>(plan->page_ids.size()));
}

StepPlan ThreeSequences() {
  StepPlan plan;
  plan.Clear();
  Add(100, 1, 10, &plan);   // row 0
  Add(129, 60, 20, &plan);  // rows 1 to 60
  Add(40, 20, 30, &plan);   // rows 61 to 80
  return plan;
}

TEST(KeepOutputRows, EachRowIsASequenceOfWhatItSees) {
  StepPlan plan = ThreeSequences(), outputs;
  plan.output_rows = {0, 59};  // the latter at 127, the last position of the second page
  ASSERT_TRUE(KeepOutputRows(plan, &outputs));
  EXPECT_EQ(outputs.n_rows(), 2);
  EXPECT_EQ(outputs.positions, (std::vector<int32_t>{99, 127}));
  EXPECT_EQ(outputs.slots, (std::vector<int32_t>{11 * 64 + 35, 21 * 64 + 63}));
  EXPECT_EQ(outputs.context_len, (std::vector<int32_t>{100, 128}));
  EXPECT_EQ(outputs.row_begin, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(outputs.page_begin, (std::vector<int32_t>{0, 2, 4}));
  EXPECT_EQ(outputs.page_ids, (std::vector<int32_t>{10, 11, 20, 21}));
  EXPECT_TRUE(outputs.copy_pages.empty() && outputs.clear_pages.empty() && outputs.shared_prefixes.empty());
}

TEST(KeepOutputRows, NoneAndTheLastOfEachSequence) {
  StepPlan plan = ThreeSequences(), outputs;
  ASSERT_TRUE(KeepOutputRows(plan, &outputs));
  EXPECT_EQ(outputs.n_rows(), 0);
  plan.output_rows = {0, 60, 80};
  ASSERT_TRUE(KeepOutputRows(plan, &outputs));
  EXPECT_EQ(outputs.context_len, plan.context_len);
  EXPECT_EQ(outputs.page_ids, plan.page_ids);
}

TEST(KeepOutputRows, WhoGoesOnSharesWhatTheySharedBefore) {
  StepPlan plan = ThreeSequences(), outputs;
  Add(70, 1, 20, &plan);  // row 81, on the second sequence's first page, as the next
  Add(80, 1, 20, &plan);  // row 82
  plan.shared_prefixes = {{1, 1, 1}, {3, 2, 1}};
  plan.output_rows = {0, 60, 81, 82};
  ASSERT_TRUE(KeepOutputRows(plan, &outputs));
  ASSERT_EQ(outputs.shared_prefixes.size(), 1u);  // one row alone shares nothing
  const SharedPrefix& prefix = outputs.shared_prefixes[0];
  EXPECT_EQ(prefix.first_sequence, 2);
  EXPECT_EQ(prefix.n_sequences, 2);
  EXPECT_EQ(prefix.n_pages, 1);
  plan.output_rows = {0, 60, 82};
  ASSERT_TRUE(KeepOutputRows(plan, &outputs));
  EXPECT_TRUE(outputs.shared_prefixes.empty());
}

TEST(KeepOutputRows, NotWhereASequenceWantsSeveralOrNoneHasManyRows) {
  StepPlan plan = ThreeSequences(), outputs;
  plan.output_rows = {59, 60};
  EXPECT_FALSE(KeepOutputRows(plan, &outputs));
  for (const int rows : {kMinRowsToKeepOutputs - 1, kMinRowsToKeepOutputs}) {
    plan.Clear();
    Add(100, 1, 10, &plan);
    Add(100, rows, 20, &plan);
    plan.output_rows = {0, rows};
    EXPECT_EQ(KeepOutputRows(plan, &outputs), rows == kMinRowsToKeepOutputs);
  }
}

}  // namespace
}  // namespace t6
