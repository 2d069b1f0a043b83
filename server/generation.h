// One request in flight, whatever its API: submits its prompts to the engine, turns their events into deltas
// on a strand of the executor, and reports once when it is over. Events are taken as they come, so a stop
// string ends the work at once even when the reader is slow; what was not read yet is merged. Thread-safe.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/call.h"
#include "server/executor.h"
#include "server/log.h"
#include "server/served_model.h"
#include "server/text_stream.h"

namespace t6::server {

// Told once of every request, good or bad.
using RequestSink = std::function<void(const RequestRecord&)>;

// What handlers need; all of it outlives them.
struct HandlerDeps {
  const ModelSlot* slot = nullptr;
  Executor* executor = nullptr;
  RequestSink sink;
};

struct GenerationSpec {
  struct Prompt {
    GenerationRequest request;
    TextStreamOptions text;
    std::shared_ptr<void> share;  // of a budget, given back when the request is over
  };
  std::vector<Prompt> prompts;
  RequestRecord record;  // id, transport and endpoint are set
};

// A piece of one choice, or at the end the usage.
struct GenerationChunk {
  int choice = -1;     // -1: this is the usage, and the last chunk
  bool first = false;  // of its choice
  TextDelta delta;
  const std::vector<int32_t>* prompt = nullptr;  // of the choice; lives as long as the generation
  v1::Usage usage;
};

class Generation final : public std::enable_shared_from_this<Generation> {
 public:
  // Submits all prompts or none; the engine's refusal comes back. `model`, `executor` outlive the generation.
  static StatusOr<std::shared_ptr<Generation>> Start(const ServedModel& model, Executor& executor,
                                                     GenerationSpec spec, RequestSink sink);
  ~Generation();

  // As StreamingCall::Next.
  using Done = std::function<void(StatusOr<std::optional<GenerationChunk>>)>;
  void Next(Done done);
  // Ends the request at once; a pending Next is answered CANCELLED.
  void Cancel();

 private:
  struct Choice {
    std::shared_ptr<EventStream> events;
    std::unique_ptr<TextStream> text;
    std::shared_ptr<void> share;
    TextDelta unread;  // merged until the transport asks
    bool has_unread = false;
    bool any_read = false;
  };

  Generation(const ServedModel& model, Executor& executor, RequestRecord record, RequestSink sink);
  void Listen();
  // On the strand, all of them.
  void OnEvents(int choice);
  void Deliver();
  void Fail(Status status);
  void Report();
  void CancelEngine();

  const ServedModel& model_;
  boost::asio::strand<boost::asio::io_context::executor_type> strand_;
  const RequestSink sink_;
  const absl::Time start_ = absl::Now();
  RequestRecord record_;
  std::vector<Choice> choices_;    // fixed once started
  int n_running_ = 0;              // choices without a finish reason
  size_t turn_ = 0;                // the choice to look at first, so that all of them get out
  std::atomic<bool> over_{false};  // nothing is left to cancel
  Done pending_;
  Status failure_;
  bool ended_ = false;  // the usage was given, or the failure
  bool reported_ = false;
};

// All of a generation at once: one chunk per choice, then the usage.
class CollectedCall final : public UnaryCall {
 public:
  using Done = std::function<void(StatusOr<std::vector<GenerationChunk>>)>;
  CollectedCall(std::shared_ptr<Generation> generation, Done done);
  ~CollectedCall() override;

 private:
  struct State;
  const std::shared_ptr<Generation> generation_;
  const std::shared_ptr<State> state_;
};

// A generation as the stream of an API's chunks.
template <typename Chunk>
class MappedCall final : public StreamingCall<Chunk> {
 public:
  MappedCall(std::shared_ptr<Generation> generation, std::function<Chunk(GenerationChunk&&)> map)
      : generation_(std::move(generation)), map_(std::move(map)) {}
  ~MappedCall() override { generation_->Cancel(); }

  void Next(typename StreamingCall<Chunk>::Done done) override {
    generation_->Next([done = std::move(done), map = map_](StatusOr<std::optional<GenerationChunk>> chunk) {
      if (!chunk.ok()) return done(chunk.status());
      if (!chunk->has_value()) return done(std::optional<Chunk>());
      done(std::optional<Chunk>(map(std::move(**chunk))));
    });
  }
  void Cancel() override { generation_->Cancel(); }

 private:
  const std::shared_ptr<Generation> generation_;
  const std::function<Chunk(GenerationChunk&&)> map_;
};

}  // namespace t6::server
