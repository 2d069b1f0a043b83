// One request on its way through the engine: its tokens, the pages that hold their factors, its end of the
// EventStream. Owned by the scheduler; engine thread only.
//
//   computed <= planned <= n_plannable()
// Tokens below `computed` were written by completed steps, those below `planned` by completed steps or ones
// in flight.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/cache/cache_manager.h"
#include "engine/event_stream.h"
#include "engine/request.h"
#include "engine/schedule/step_plan.h"

namespace t6 {

enum class SequenceState : uint8_t {
  kWaiting,  // in line, perhaps for a prefix that another sequence is computing
  kLoading,  // its prefix is on its way from another tier; a completion event ends it
  kRunning,
  kSwapped,   // its pages are on another tier; a completion event ends it
  kRetiring,  // ended or preempted while a step that uses its pages is in flight
  kDone,
};

struct Sequence {
  Sequence(GenerationRequest request, std::shared_ptr<EventStream> stream, PrefixTree::Cursor cursor,
           uint64_t arrival, int output_limit, absl::Time now);

  RequestId id() const { return stream->id(); }
  int n_tokens() const { return static_cast<int>(tokens.size()); }
  int n_outputs() const { return n_tokens() - n_prompt; }
  bool ended() const { return finish != FinishReason::kNone; }
  // Tokens whose rows can be planned: the known ones, and one in flight unless it will be the last.
  int n_plannable() const;
  // Only the row of its newest token is left to compute.
  bool decodes() const { return planned >= n_prompt && planned + 1 == n_plannable(); }
  // How many tokens may come from the cache: not the last one, and none whose score is still wanted.
  int max_match() const;
  // Whether the logits of the row at `position` are wanted, and for what.
  bool WantsOutput(int position, SamplingRow* row) const;
  // Rows from `planned` on, at most `max_rows`, that ask for at most `max_outputs` output rows.
  int RowsWithin(int max_rows, int max_outputs) const;

  // Which goes first: by turn, then by priority, then by arrival.
  static bool Older(const Sequence* a, const Sequence* b) {
    return a->turn != b->turn ? a->turn < b->turn : GoesBefore(a, b);
  }
  // The same within one tenant.
  static bool GoesBefore(const Sequence* a, const Sequence* b) {
    return a->priority != b->priority ? a->priority < b->priority : a->arrival < b->arrival;
  }

  // --- what was asked for
  const SamplingParams sampling;
  const std::shared_ptr<EventStream> stream;
  const std::string tenant;
  const int32_t priority;
  const uint64_t arrival;  // order of submission
  const int n_prompt;
  const int output_limit;  // output tokens at most
  const absl::Time deadline;
  const absl::Time submitted_at;

  // --- where it stands
  SequenceState state = SequenceState::kWaiting;
  FinishReason finish = FinishReason::kNone;
  std::vector<int32_t> tokens;  // prompt, then output
  int64_t turn = 0;  // how many of its tenant's have gone or go before it; 0 while there is one tenant
  int computed = 0;
  int planned = 0;
  int steps_in_flight = 0;
  int samples_in_flight = 0;  // sampled by steps in flight: token n_tokens() and perhaps the next
  int sample_row = -1;        // the output row that sampled the newest of them
  int n_scored = 0;           // prompt tokens whose scores were delivered
  int cached_tokens = -1;     // of the prompt, when it was first admitted; -1: never yet
  absl::Duration queue_time;  // until first admission
  absl::Time last_token_at = absl::InfinitePast();

  // --- its pages: page i holds tokens 64 i .. 64 i + 63
  PrefixTree::Cursor cursor;
  std::vector<PageRef> pages;
  std::vector<int32_t> page_ids;  // of `pages`

  // --- while it is in line
  RequestId waits_for = 0;         // with wait_until > 0: the sequence that computes its prefix ...
  int wait_until = 0;              // ... and how many tokens of it are waited for
  bool looked_for_prefix = false;  // in the making, at least once
  bool waited_for_prefix = false;
  int pages_wanted = 0;  // > 0: there were fewer when it was last looked at
};

}  // namespace t6
