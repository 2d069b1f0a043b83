#include "server/generation.h"

#include <boost/asio/post.hpp>

#include "absl/time/clock.h"

namespace t6::server {
namespace {

std::string FinishName(FinishReason finish) { return finish == FinishReason::kLength ? "length" : "stop"; }

}  // namespace

StatusOr<std::shared_ptr<Generation>> Generation::Start(const ServedModel& model, Executor& executor,
                                                        GenerationSpec spec, RequestSink sink) {
  std::shared_ptr<Generation> generation(
      new Generation(model, executor, std::move(spec.record), std::move(sink)));
  for (GenerationSpec::Prompt& prompt : spec.prompts) {
    auto text = std::make_unique<TextStream>(model.tokenizer, prompt.request.prompt, std::move(prompt.text));
    auto events = model.engine->Submit(std::move(prompt.request));
    if (!events.ok()) {
      generation->reported_ = true;  // whoever asked reports the refusal
      return events.status();        // and the destructor cancels what was accepted
    }
    generation->choices_.push_back({*std::move(events), std::move(text), std::move(prompt.share), {}});
  }
  generation->n_running_ = static_cast<int>(generation->choices_.size());
  generation->Listen();
  return generation;
}

Generation::Generation(const ServedModel& model, Executor& executor, RequestRecord record, RequestSink sink)
    : model_(model),
      strand_(boost::asio::make_strand(executor.io())),
      sink_(std::move(sink)),
      record_(std::move(record)) {}

// The last reference is a call that nobody holds, or work that the executor dropped when it stopped.
Generation::~Generation() {
  CancelEngine();
  if (failure_.ok() && !ended_) failure_ = absl::CancelledError("the request was given up");
  Report();
}

void Generation::Listen() {
  for (size_t i = 0; i < choices_.size(); ++i) {
    // Runs on the engine thread: nothing but a hand-over.
    choices_[i].events->SetListener([weak = weak_from_this(), i] {
      if (auto self = weak.lock()) {
        boost::asio::post(self->strand_, [self, i] { self->OnEvents(static_cast<int>(i)); });
      }
    });
  }
}

void Generation::Next(Done done) {
  boost::asio::post(strand_, [self = shared_from_this(), done = std::move(done)]() mutable {
    if (self->pending_) return done(Internal("two reads of one stream at once"));
    self->pending_ = std::move(done);
    self->Deliver();
  });
}

void Generation::Cancel() {
  CancelEngine();
  boost::asio::post(strand_, [self = shared_from_this()] {
    if (!self->ended_) self->Fail(absl::CancelledError("the request was cancelled"));
  });
}

void Generation::CancelEngine() {
  if (over_.exchange(true)) return;
  for (const Choice& choice : choices_) model_.engine->Cancel(choice.events->id());
}

void Generation::OnEvents(int index) {
  Choice& choice = choices_[index];
  TokenEvent event;
  if (!failure_.ok() || choice.text->finished() || !choice.events->Poll(&event)) return;
  if (event.finish == FinishReason::kError || event.finish == FinishReason::kCancelled) {
    return Fail(event.status.ok() ? absl::CancelledError("the request was cancelled") : event.status);
  }
  auto delta = choice.text->Consume(event);
  if (!delta.ok()) return Fail(Annotate(delta.status(), "decoding the output"));
  record_.queue = std::max(record_.queue.value_or(absl::ZeroDuration()), event.queue_time);
  if (!record_.first_token && !event.tokens.empty()) record_.first_token = absl::Now() - start_;
  if (delta->finish != FinishReason::kNone) {
    if (delta->stop_string) model_.engine->Finish(choice.events->id());
    if (record_.finish.empty()) record_.finish = FinishName(delta->finish);
    --n_running_;
  }
  // The first event is worth a chunk even without text: headers leave with the first token.
  const bool is_first = !choice.any_read && (!event.tokens.empty() || delta->finish != FinishReason::kNone);
  choice.has_unread |= is_first || !delta->empty();
  choice.unread.Append(*std::move(delta));
  if (n_running_ == 0) {
    over_ = true;
    Report();
  }
  Deliver();
}

void Generation::Deliver() {
  if (!pending_) return;
  const auto answer = [this](StatusOr<std::optional<GenerationChunk>> chunk) {
    std::exchange(pending_, nullptr)(std::move(chunk));
  };
  if (!failure_.ok()) {
    ended_ = true;
    return answer(failure_);
  }
  if (ended_) return answer(std::optional<GenerationChunk>());
  for (size_t n = 0; n < choices_.size(); ++n) {
    const size_t i = (turn_ + n) % choices_.size();
    Choice& choice = choices_[i];
    if (!choice.has_unread) continue;
    turn_ = i + 1;
    GenerationChunk chunk;
    chunk.choice = static_cast<int>(i);
    chunk.first = !std::exchange(choice.any_read, true);
    chunk.delta = std::exchange(choice.unread, TextDelta{});
    chunk.prompt = &choice.text->prompt();
    choice.has_unread = false;
    return answer(std::optional<GenerationChunk>(std::move(chunk)));
  }
  if (n_running_ > 0) return;
  ended_ = true;
  GenerationChunk last;
  last.usage.set_prompt_tokens(static_cast<int32_t>(record_.prompt_tokens));
  last.usage.set_completion_tokens(static_cast<int32_t>(record_.completion_tokens));
  last.usage.set_total_tokens(last.usage.prompt_tokens() + last.usage.completion_tokens());
  last.usage.set_cached_tokens(static_cast<int32_t>(record_.cached_tokens));
  answer(std::optional<GenerationChunk>(std::move(last)));
}

void Generation::Fail(Status status) {
  if (!failure_.ok()) return;
  failure_ = std::move(status);
  CancelEngine();
  Report();
  Deliver();
}

void Generation::Report() {
  if (std::exchange(reported_, true)) return;
  for (const Choice& choice : choices_) {
    record_.prompt_tokens += choice.text->prompt_tokens();
    record_.completion_tokens += choice.text->completion_tokens();
    record_.cached_tokens += choice.text->cached_tokens();
  }
  record_.status = failure_;
  if (!failure_.ok()) record_.finish = absl::StatusCodeToString(failure_.code());
  record_.total = absl::Now() - start_;
  if (sink_) sink_(record_);
}

// Owned by the pending read and by the call, and does not own the generation, whose pending read it is.
struct CollectedCall::State : std::enable_shared_from_this<CollectedCall::State> {
  std::weak_ptr<Generation> generation;
  Done done;
  std::atomic<bool> abandoned{false};
  std::vector<GenerationChunk> chunks;  // by choice, then the usage

  void Pump() {
    auto live = generation.lock();
    if (live == nullptr) return;  // the call is gone, and with it whoever waited
    live->Next([self = shared_from_this()](StatusOr<std::optional<GenerationChunk>> chunk) {
      if (self->abandoned) return;
      if (!chunk.ok()) return self->done(chunk.status());
      if (!chunk->has_value()) return self->done(std::move(self->chunks));
      self->Take(std::move(**chunk));
      self->Pump();
    });
  }

  void Take(GenerationChunk&& chunk) {
    if (chunk.choice < 0) {
      chunks.push_back(std::move(chunk));
      return;
    }
    const size_t index = static_cast<size_t>(chunk.choice);
    if (index >= chunks.size()) chunks.resize(index + 1);
    if (chunks[index].choice < 0) {
      chunks[index] = std::move(chunk);
    } else {
      chunks[index].delta.Append(std::move(chunk.delta));
    }
  }
};

CollectedCall::CollectedCall(std::shared_ptr<Generation> generation, Done done)
    : generation_(std::move(generation)), state_(std::make_shared<State>()) {
  state_->generation = generation_;
  state_->done = std::move(done);
  state_->Pump();
}

CollectedCall::~CollectedCall() {
  state_->abandoned = true;
  generation_->Cancel();
}

}  // namespace t6::server
