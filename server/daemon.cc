#include "server/daemon.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "server/auth.h"
#include "server/chat_handler.h"
#include "server/completion_handler.h"
#include "server/executor.h"
#include "server/grpc/grpc_server.h"
#include "server/http/api.h"
#include "server/http/http_server.h"
#include "server/info_handler.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/served_model.h"

namespace t6::server {
namespace {

// Text and JSON are light beside the model, which needs the cores.
constexpr int kExecutorThreads = 2;
constexpr int kPromptThreads = 2;
constexpr int kTextThreads = 1;
// A text of the largest size takes ten seconds and more, and what waits holds memory that others want.
constexpr int kMaxTextsWaiting = 16;
// How often Wait looks at what does not notify.
constexpr absl::Duration kGlance = absl::Milliseconds(10);
constexpr absl::Duration kRefusedKeysLog = absl::Seconds(10);  // a line at most
constexpr absl::Duration kHealthGlance = absl::Milliseconds(500);
// For answers that gRPC has taken and not yet sent; a client that is gone without a word is not waited for
// longer.
constexpr absl::Duration kDelivery = absl::Seconds(10);

// Written beside and renamed, so that a reader never sees half of it.
Status WritePortFile(const std::string& path, const nlohmann::json& ports) {
  const std::string beside = path + ".tmp";
  {
    std::ofstream out(beside, std::ios::trunc);
    out << ports.dump() << "\n";
    out.flush();
    if (!out) return Unavailable("--port-file {} cannot be written", path);
  }
  std::error_code error;
  std::filesystem::rename(beside, path, error);
  if (error) return Unavailable("--port-file {} cannot be written: {}", path, error.message());
  return absl::OkStatus();
}

}  // namespace

// Torn down in the order of Stop(): the transports first, then the executors, then the engine.
struct Daemon::Impl {
  Impl(const ServerConfig& c, EngineFactory factory)
      : config(c), make_engine(std::move(factory)), metrics(c.served_model_name) {
    const HandlerDeps deps{&slot, &executor, [this](const RequestRecord& record) {
                             load.Count(record.status.code());
                             metrics.CountRequest(record.transport, record.status.code());
                             LogRequest(record);
                           }};
    chat = MakeChatHandler(deps);
    completion = MakeCompletionHandler(deps);
    info = MakeInfoHandler(&slot);
    handlers = {chat.get(), completion.get(), info.get(), &prompts, &texts};
  }
  ~Impl() { Stop(delivery_ends); }

  Status LoadKeys();
  Status Listen(Daemon* daemon);
  Status LoadText();
  Status LoadEngine();
  void SetState(ServingState next);
  int InFlight() const { return http->requests_in_flight() + grpc->calls_in_flight(); }
  bool HasFailed() const { return !engine->health().ok(); }
  // Until `cut`, the deadline, or `ended`, which does not notify.
  template <typename Cut, typename Ended>
  void WaitUntil(const Cut& cut, absl::Time deadline, const Ended& ended)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  Status EndFailed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  void Stop(absl::Time deadline);

  const ServerConfig config;
  const EngineFactory make_engine;
  Metrics metrics;
  LoadMeter load;
  LogThrottle refused_keys{kRefusedKeysLog};
  ModelSlot slot;
  ServedModel model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<ChatHandler> chat;
  std::unique_ptr<CompletionHandler> completion;
  std::unique_ptr<InfoHandler> info;
  std::unique_ptr<ApiKeys> keys;  // set once, under `mutex`: a signal may ask for a reload meanwhile
  Handlers handlers;
  std::unique_ptr<HttpApi> app;
  std::unique_ptr<AdminApi> admin_app;
  Executor executor{kExecutorThreads};
  Executor prompts{kPromptThreads};
  Executor texts{kTextThreads, kMaxTextsWaiting};
  std::optional<Executor> admin_executor;  // probes are answered however busy `executor` is
  std::unique_ptr<Engine> engine;
  std::unique_ptr<HttpServer> http;
  std::unique_ptr<HttpServer> admin;  // none: over `http`
  std::unique_ptr<GrpcServer> grpc;

  std::atomic<ServingState> state{ServingState::kStarting};
  absl::Mutex mutex;
  int stop_calls ABSL_GUARDED_BY(mutex) = 0;
  bool skip_grace ABSL_GUARDED_BY(mutex) = false;
  absl::Time delivery_ends = absl::InfinitePast();  // after a failure the last errors may be on their way
};

Status Daemon::Impl::LoadKeys() {
  if (config.api_key_file.empty()) return absl::OkStatus();
  const auto count = [this](std::string_view transport) {
    metrics.CountRequest(transport, absl::StatusCode::kUnauthenticated);
    if (const int n = refused_keys.Count(absl::Now()); n > 0) {
      spdlog::warn("{} without a known API key, the last one over {}",
                   n == 1 ? "a request" : fmt::format("{} requests", n), transport);
    }
  };
  absl::MutexLock lock(&mutex);
  T6_ASSIGN_OR_RETURN(keys, ApiKeys::Load(config.api_key_file, count));
  handlers.keys = keys.get();
  spdlog::info("{} API keys from {}", keys->size(), config.api_key_file);
  return absl::OkStatus();
}

Status Daemon::Impl::Listen(Daemon* daemon) {
  app = std::make_unique<HttpApi>(handlers, *daemon, config.http, /*with_metrics=*/!config.admin.has_value());
  T6_ASSIGN_OR_RETURN(http, HttpServer::Start(executor.io(), config.http, app.get()));
  T6_ASSIGN_OR_RETURN(grpc, GrpcServer::Start(config.grpc, handlers, daemon, &executor));
  nlohmann::json ports;
  const auto listening = [&ports](const char* name, const ListenAddress& asked, int port) {
    ports[name] = port;
    const ListenAddress address{asked.host, static_cast<uint16_t>(port)};
    spdlog::info("{} listening on {}", name, address.ToString());
  };
  listening("http", config.http.address, http->port());
  listening("grpc", config.grpc.address, grpc->port());
  if (config.admin.has_value()) {
    HttpConfig admin_config = config.http;
    admin_config.address = *config.admin;
    admin_app = std::make_unique<AdminApi>(*daemon);
    admin_executor.emplace(1);
    T6_ASSIGN_OR_RETURN(admin, HttpServer::Start(admin_executor->io(), admin_config, admin_app.get()));
    listening("admin", *config.admin, admin->port());
  }
  return config.port_file.empty() ? absl::OkStatus() : WritePortFile(config.port_file, ports);
}

// Without a tokenizer the model still serves token ids, and without a template completions: unless a flag
// named them.
Status Daemon::Impl::LoadText() {
  const bool named = !config.tokenizer_directory.empty();
  const std::string directory = named ? config.tokenizer_directory : config.engine.model_directory;
  auto loaded = Tokenizer::Load(directory);
  if (loaded.ok()) {
    tokenizer = *std::move(loaded);
    spdlog::debug("tokenizer loaded: {} tokens", tokenizer->n_tokens());
  } else if (named || !absl::IsNotFound(loaded.status())) {
    return Annotate(loaded.status(), "tokenizer");
  } else {
    std::error_code error;  // of a folder that is not there the engine tells
    if (std::filesystem::is_directory(directory, error))
      spdlog::warn("{}: only prompts of token ids are served", MessageOf(loaded.status()));
    return config.chat_template_file.empty()
               ? absl::OkStatus()
               : InvalidArgument("--chat-template {} needs a tokenizer: --tokenizer names one",
                                 config.chat_template_file);
  }
  const bool has_file = !config.chat_template_file.empty();
  auto chat_loaded =
      has_file ? ChatTemplate::LoadFile(config.chat_template_file, directory) : ChatTemplate::Load(directory);
  if (chat_loaded.ok()) {
    chat_template = *std::move(chat_loaded);
    spdlog::debug("chat template loaded");
  } else if (has_file || !absl::IsNotFound(chat_loaded.status())) {
    return Annotate(chat_loaded.status(), "chat template");
  } else {
    spdlog::warn("{}: chat is refused", MessageOf(chat_loaded.status()));
  }
  return absl::OkStatus();
}

Status Daemon::Impl::LoadEngine() {
  EngineConfig engine_config = config.engine;
  if (tokenizer != nullptr) engine_config.n_text_tokens = tokenizer->n_tokens();
  T6_ASSIGN_OR_RETURN(engine, make_engine(engine_config, metrics.engine()));
  const ModelInfo& info = engine->info();
  for (const int32_t id : config.eos_ids) {
    if (id >= info.vocab_size)
      return InvalidArgument("--eos-id {} is not below the vocabulary of {}", id, info.vocab_size);
  }
  model.name = config.served_model_name;
  model.engine = engine.get();
  model.tokenizer = tokenizer.get();
  model.chat_template = chat_template.get();
  model.eos_ids = config.eos_ids.empty() ? info.eos_token_ids : config.eos_ids;
  if (model.eos_ids.empty() && tokenizer != nullptr && tokenizer->eos_token_id().has_value()) {
    model.eos_ids.push_back(*tokenizer->eos_token_id());
  }
  model.created = absl::ToUnixSeconds(absl::Now());
  if (!info.why_not_cuda.empty()) spdlog::warn("serving on the CPU: {}", info.why_not_cuda);
  if (!info.slow_attention.empty())
    spdlog::warn("slow: this device has no attention kernel of its own for {}", info.slow_attention);
  spdlog::info("{}: {}, {:.1f} M parameters, context {}; {}; {}, cache {} tokens of {} in {:.0f} MiB",
               model.name, info.variant, static_cast<double>(info.n_parameters) / 1e6, info.max_context,
               info.device, info.dtype, info.memory.cache_tokens(), info.cache_dtype,
               static_cast<double>(info.memory.cache_bytes) / (1 << 20));
  return absl::OkStatus();
}

void Daemon::Impl::SetState(ServingState next) {
  // Nobody may see the health service promise more than the state keeps.
  const bool ready = next == ServingState::kServing;
  if (!ready) grpc->SetServing(false);
  state = next;
  if (ready) grpc->SetServing(true);
  metrics.SetReady(ready);
}

template <typename Cut, typename Ended>
void Daemon::Impl::WaitUntil(const Cut& cut, absl::Time deadline, const Ended& ended) {
  while (!ended() && absl::Now() < deadline) {
    if (mutex.AwaitWithTimeout(absl::Condition(&cut), std::min(kGlance, deadline - absl::Now()))) return;
  }
}

// The engine has ended its requests with the reason: whoever waits for an answer hears of it.
Status Daemon::Impl::EndFailed() {
  SetState(ServingState::kFailed);
  const int calls_before = stop_calls;
  const absl::Time deadline = absl::Now() + kDelivery;
  WaitUntil([this, calls_before] { return stop_calls > calls_before; }, deadline,
            [this] { return InFlight() == 0; });
  if (InFlight() == 0) delivery_ends = deadline;
  return Annotate(engine->health(), "the engine failed");
}

void Daemon::Impl::Stop(absl::Time deadline) {
  state = ServingState::kStopped;
  if (http != nullptr) http->Stop(deadline);
  if (admin != nullptr) admin->Stop(absl::InfinitePast());
  if (grpc != nullptr) grpc->Stop(deadline);
  grpc = nullptr;
  http = nullptr;
  admin = nullptr;
  prompts.Stop();
  texts.Stop();
  executor.Stop();
  if (admin_executor.has_value()) admin_executor->Stop();
  slot.Set(nullptr);
  engine = nullptr;
}

Daemon::Daemon(const ServerConfig& config, EngineFactory make_engine)
    : impl_(std::make_unique<Impl>(config, std::move(make_engine))) {}

Daemon::~Daemon() = default;

Status Daemon::Start() {
  const absl::Time start = absl::Now();
  T6_RETURN_IF_ERROR(impl_->LoadKeys());
  T6_RETURN_IF_ERROR(impl_->Listen(this));
  T6_RETURN_IF_ERROR(impl_->LoadText());
  T6_RETURN_IF_ERROR(impl_->LoadEngine());
  impl_->slot.Set(&impl_->model);
  impl_->SetState(ServingState::kServing);
  spdlog::info("{} ready after {:.2f} s", VersionText(), absl::ToDoubleSeconds(absl::Now() - start));
  return absl::OkStatus();
}

Status Daemon::Wait() {
  Impl& d = *impl_;
  absl::MutexLock lock(&d.mutex);
  const auto stop_asked = [&d] { return d.stop_calls > 0; };
  while (!d.mutex.AwaitWithTimeout(absl::Condition(&stop_asked), kHealthGlance)) {
    if (d.HasFailed()) return d.EndFailed();
  }

  if (!d.skip_grace) {
    d.SetState(ServingState::kGrace);
    spdlog::info("stopping: not ready, still serving for {}", absl::FormatDuration(d.config.drain_grace));
    d.WaitUntil([&d] { return d.skip_grace || d.stop_calls > 1; }, absl::Now() + d.config.drain_grace,
                [&d] { return d.HasFailed(); });
    if (d.HasFailed()) return d.EndFailed();
  }

  d.SetState(ServingState::kDraining);
  d.engine->StopAdmission();
  const int calls_before = d.stop_calls;
  const absl::Time deadline = absl::Now() + d.config.drain_deadline;
  spdlog::info("draining: {} requests in flight, at most {}", d.InFlight(),
               absl::FormatDuration(d.config.drain_deadline));
  d.WaitUntil([&d, calls_before] { return d.stop_calls > calls_before; }, deadline,
              [&d] { return d.InFlight() == 0 || d.HasFailed(); });
  if (d.HasFailed()) return d.EndFailed();
  const int left = d.InFlight();
  if (left > 0) spdlog::warn("{} requests are cut off", left);
  // No call in flight is not yet every answer on its way: cancelling now would lose the last ones.
  d.Stop(left > 0 ? absl::InfinitePast() : std::min(deadline, absl::Now() + kDelivery));
  spdlog::info("stopped");
  return absl::OkStatus();
}

void Daemon::RequestStop(bool skip_grace) {
  absl::MutexLock lock(&impl_->mutex);
  ++impl_->stop_calls;
  impl_->skip_grace |= skip_grace;
}

Status Daemon::ReloadKeys() {
  if (impl_->config.api_key_file.empty())
    return Status(absl::StatusCode::kFailedPrecondition, "there is no --api-key-file to read again");
  ApiKeys* keys = nullptr;
  {
    absl::MutexLock lock(&impl_->mutex);
    keys = impl_->keys.get();
  }
  if (keys == nullptr) return absl::OkStatus();  // they have yet to be read
  T6_RETURN_IF_ERROR(keys->Reload());
  spdlog::info("{} API keys from {}", keys->size(), impl_->config.api_key_file);
  return absl::OkStatus();
}

int Daemon::http_port() const { return impl_->http->port(); }

int Daemon::grpc_port() const { return impl_->grpc->port(); }

int Daemon::admin_port() const { return impl_->admin == nullptr ? 0 : impl_->admin->port(); }

ServingState Daemon::state() const { return impl_->state; }

LoadReport Daemon::Load() const {
  const ServedModel* model = impl_->slot.Get();
  return impl_->load.Report(model == nullptr ? EngineStats{} : model->engine->stats(),
                            impl_->config.engine.max_num_seqs);
}

std::string Daemon::MetricsText() const { return impl_->metrics.Text(); }

std::string Daemon::Version() const { return VersionText(); }

}  // namespace t6::server
