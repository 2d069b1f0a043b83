// Which of a step's sequences share leading pages: attention reads those once for the whole group. Pure host
// code.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/schedule/step_plan.h"

namespace t6 {

// Equal ids at one place mean equal ids at all places before it, as a page's contents depend on all tokens
// before it.
using PageList = absl::Span<const int32_t>;

// Fills `order` with the indices of `lists`, those that share much next to each other, and `groups` (in terms
// of that order, disjoint, at least two sequences and one page each) so that as many page reads as possible
// are saved.
void GroupByPrefix(absl::Span<const PageList> lists, std::vector<int>* order,
                   std::vector<SharedPrefix>* groups);

}  // namespace t6
