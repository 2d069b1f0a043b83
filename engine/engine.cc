#include "engine/engine.h"

#include <utility>

#include "engine/backend/factory.h"
#include "engine/checkpoint/tensor_source.h"
#include "engine/engine_loop.h"
#include "engine/memory_plan.h"
#include "engine/model/model_spec.h"
#include "engine/model_runner.h"

namespace t6 {
namespace {

// Everything that is known before anything large is allocated.
struct Prepared {
  std::unique_ptr<TensorSource> tensors;
  ModelSpec spec;
  std::unique_ptr<Backend> backend;
  ResolvedConfig resolved;
  ModelInfo info;
};

StatusOr<Prepared> Prepare(const EngineConfig& config) {
  Prepared p;
  T6_ASSIGN_OR_RETURN(p.tensors, OpenCheckpoint(config.model_directory));
  T6_ASSIGN_OR_RETURN(
      p.spec, ReadModelSpec(config.model_directory, *p.tensors, {config.variant, config.model_overrides}));
  T6_ASSIGN_OR_RETURN(MadeBackend made, MakeBackend({.device = config.device, .threads = config.threads}));
  p.backend = std::move(made.backend);
  T6_ASSIGN_OR_RETURN(p.resolved, ResolveConfig(config, p.spec, p.backend->info()));
  T6_ASSIGN_OR_RETURN(const MemoryPlan memory, PlanMemory(config, p.resolved, p.spec, *p.backend));
  if (config.n_text_tokens < 0)
    return InvalidArgument("n_text_tokens is {}; it must not be negative", config.n_text_tokens);

  const GenerationDefaults& defaults = p.spec.generation;
  p.info = {.variant = p.spec.variant,
            .vocab_size = p.spec.vocab_size,
            .n_layers = p.spec.n_layers,
            .width = p.spec.width,
            .max_context = p.resolved.limits.max_context,
            .n_parameters = p.spec.n_parameters,
            .device = fmt::format("{}: {}", p.backend->info().kind, p.backend->info().description),
            .dtype = std::string(NameOf(p.resolved.compute)),
            .cache_dtype = std::string(NameOf(p.resolved.cache_dtype)),
            .default_temperature = defaults.temperature,
            .default_top_p = defaults.top_p,
            .default_top_k = defaults.top_k,
            .default_max_new_tokens = defaults.max_new_tokens,
            .eos_token_ids = defaults.eos_token_ids,
            .memory = memory,
            .slow_attention = p.backend->SlowAttention(p.spec.attention, p.resolved.cache_dtype),
            .why_not_cuda = made.why_not_cuda};
  return p;
}

EngineLoopConfig LoopConfig(const EngineConfig& config, const Prepared& p, const Backend& backend) {
  EngineLoopConfig loop;
  loop.scheduler.max_num_seqs = config.max_num_seqs;
  loop.scheduler.max_step_rows = p.resolved.limits.max_rows;
  loop.scheduler.max_outputs = p.resolved.limits.max_outputs;
  loop.scheduler.max_context = p.resolved.limits.max_context;
  loop.scheduler.max_step_ms = config.max_step_ms;
  loop.scheduler.pipeline_depth = backend.info().pipeline_depth;
  loop.scheduler.page_bytes = p.info.memory.page_bytes;
  loop.max_queued_requests = config.max_queued_requests;
  loop.max_queued_tokens = config.max_queued_tokens;
  loop.max_queued_per_tenant = config.max_queued_per_tenant;
  loop.cache_key = fmt::format("{}/{}/{}/{}/{}", p.spec.variant, p.spec.n_parameters, p.info.device,
                               p.info.dtype, p.info.cache_dtype);
  return loop;
}

// A loop with the model that it runs. Declared in the order of construction: the loop's thread ends first.
class ModelEngine final : public Engine {
 public:
  static StatusOr<std::unique_ptr<Engine>> Make(const EngineConfig& config, EngineMetrics* metrics,
                                                const Clock* clock) {
    T6_ASSIGN_OR_RETURN(Prepared p, Prepare(config));
    std::unique_ptr<ModelEngine> engine(new ModelEngine);
    engine->backend_ = std::move(p.backend);
    T6_ASSIGN_OR_RETURN(engine->model_,
                        T6Model::Load(engine->backend_.get(), p.spec, *p.tensors, p.resolved.compute,
                                      p.resolved.limits, config.on_load_progress));
    T6_ASSIGN_OR_RETURN(
        engine->cache_,
        FactorCache::Create(engine->backend_.get(), PageLayout(p.spec.attention, p.resolved.cache_dtype),
                            p.spec.n_layers, p.info.memory.n_pages));
    const int n_text =
        config.n_text_tokens > 0 ? std::min(config.n_text_tokens, p.spec.vocab_size) : p.spec.vocab_size;
    engine->runner_ = std::make_unique<ModelRunner>(engine->backend_.get(), engine->model_.get(),
                                                    engine->cache_.get(), n_text);
    // p.backend has moved into the engine.
    engine->loop_ = std::make_unique<EngineLoop>(LoopConfig(config, p, *engine->backend_), p.info,
                                                 engine->runner_.get(), metrics, clock);
    return std::unique_ptr<Engine>(std::move(engine));
  }

  const ModelInfo& info() const override { return loop_->info(); }
  StatusOr<std::shared_ptr<EventStream>> Submit(GenerationRequest request) override {
    return loop_->Submit(std::move(request));
  }
  void Cancel(RequestId id) override { loop_->Cancel(id); }
  void Finish(RequestId id) override { loop_->Finish(id); }
  void StopAdmission() override { loop_->StopAdmission(); }
  bool Drain(absl::Time deadline) override { return loop_->Drain(deadline); }
  void ClearPrefixes() override { loop_->ClearPrefixes(); }
  EngineStats stats() const override { return loop_->stats(); }
  Status health() const override { return loop_->health(); }

 private:
  ModelEngine() = default;

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<T6Model> model_;
  std::unique_ptr<FactorCache> cache_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<EngineLoop> loop_;
};

}  // namespace

StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config, EngineMetrics* metrics,
                                                 const Clock* clock) {
  return ModelEngine::Make(config, metrics, clock);
}

StatusOr<ModelInfo> Engine::Plan(const EngineConfig& config) {
  T6_ASSIGN_OR_RETURN(const Prepared p, Prepare(config));
  return p.info;
}

}  // namespace t6
