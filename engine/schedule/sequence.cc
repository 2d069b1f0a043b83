#include "engine/schedule/sequence.h"

#include <algorithm>
#include <utility>

namespace t6 {

Sequence::Sequence(GenerationRequest request, std::shared_ptr<EventStream> event_stream,
                   PrefixTree::Cursor at_root, uint64_t arrival_number, int limit, absl::Time now)
    : sampling(std::move(request.sampling)),
      stream(std::move(event_stream)),
      tenant(std::move(request.tenant)),
      priority(request.priority),
      arrival(arrival_number),
      n_prompt(static_cast<int>(request.prompt.size())),
      output_limit(limit),
      deadline(request.deadline),
      submitted_at(now),
      tokens(std::move(request.prompt)),
      cursor(std::move(at_root)) {}

int Sequence::n_plannable() const {
  const bool more = n_outputs() + samples_in_flight < output_limit;
  return n_tokens() + (more ? samples_in_flight : 0);
}

int Sequence::max_match() const {
  const bool scores_wanted = sampling.n_prompt_logprobs >= 0 && n_scored < n_prompt - 1;
  return scores_wanted ? n_scored : n_tokens() - 1;
}

bool Sequence::WantsOutput(int position, SamplingRow* row) const {
  if (position < n_prompt - 1) {
    if (sampling.n_prompt_logprobs < 0 || position < n_scored) return false;
    *row = {.score_token = tokens[position + 1], .n_top = sampling.n_prompt_logprobs};
    return true;
  }
  const int output_index = position + 1 - n_prompt;
  if (position + 1 != n_tokens() + samples_in_flight || output_index >= output_limit) return false;
  *row = {.temperature = sampling.temperature,
          .top_p = sampling.top_p,
          .top_k = sampling.top_k,
          .seed = sampling.seed,
          .output_index = output_index,
          .n_top = sampling.n_logprobs};
  return true;
}

int Sequence::RowsWithin(int max_rows, int max_outputs) const {
  int n = std::min(max_rows, n_plannable() - planned);
  if (sampling.n_prompt_logprobs >= 0 && planned < n_prompt - 1) {
    const int first_score = std::max(planned, n_scored);
    n = std::min(n, first_score + max_outputs - planned);
  } else if (max_outputs == 0) {
    n = std::min(n, n_plannable() - 1 - planned);
  }
  return std::max(n, 0);
}

}  // namespace t6
