// The engine: prompts of tokens in, events of tokens out. Owns backend, model, cache, scheduler, sampler, the
// inbox and one thread; once started only that thread touches them. Every method is thread-safe.
#pragma once

#include <memory>

#include "engine/base/clock.h"
#include "engine/base/metrics.h"
#include "engine/base/status.h"
#include "engine/config.h"
#include "engine/event_stream.h"
#include "engine/request.h"

namespace t6 {

class Engine {
 public:
  virtual ~Engine() = default;

  // Loads the model and starts the thread. `metrics` and `clock` must outlive the engine.
  static StatusOr<std::unique_ptr<Engine>> Create(const EngineConfig& config, EngineMetrics* metrics,
                                                  const Clock* clock = RealClock::Get());
  // What Create would allocate, without allocating it.
  static StatusOr<ModelInfo> Plan(const EngineConfig& config);

  virtual const ModelInfo& info() const = 0;

  // INVALID_ARGUMENT: the prompt is empty, holds an id outside the vocabulary, or with max_tokens exceeds the
  // context; RESOURCE_EXHAUSTED: the queue is full; UNAVAILABLE: draining or failed.
  virtual StatusOr<std::shared_ptr<EventStream>> Submit(GenerationRequest request) = 0;
  // Its pages are released by the next step. Unknown ids are ignored: the request may just have ended.
  virtual void Cancel(RequestId id) = 0;
  // A stop string was found: ends the request with kStop, counted as success.
  virtual void Finish(RequestId id) = 0;

  // From now on Submit answers UNAVAILABLE; what runs goes on.
  virtual void StopAdmission() = 0;
  // Waits until nothing runs or waits; false at the deadline (what is left is then cancelled by the
  // destructor).
  virtual bool Drain(absl::Time deadline) = 0;
  // Drops every prefix that no sequence holds.
  virtual void ClearPrefixes() = 0;

  virtual EngineStats stats() const = 0;
  // OK, or why the engine has failed for good.
  virtual Status health() const = 0;
};

}  // namespace t6
