#include "server/grpc/health_service.h"

#include <utility>

#include "server/error_map.h"

namespace t6::server {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// One Watch. All its state is guarded by the service's mutex; the last status not written yet is the only one
// kept.
class HealthService::Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService* health, std::string service) : health_(health), service_(std::move(service)) {
    absl::MutexLock lock(&health_->mutex_);
    health_->watchers_.insert(this);
    Update();
  }

  void Update() ABSL_EXCLUSIVE_LOCKS_REQUIRED(health_->mutex_) {
    if (finished_ || writing_) return;
    if (health_->ended_)
      return End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"));
    const Serving status = health_->StatusOf(service_);
    if (written_ && response_.status() == status) return;
    response_.set_status(status);
    written_ = writing_ = true;
    StartWrite(&response_);
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&health_->mutex_);
    writing_ = false;
    if (!ok || cancelled_) return End(grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone"));
    Update();
  }
  void OnCancel() override {
    absl::MutexLock lock(&health_->mutex_);
    cancelled_ = true;
    if (!writing_) End(grpc::Status(grpc::StatusCode::CANCELLED, "the client cancelled the watch"));
  }
  void OnDone() override { delete this; }

 private:
  void End(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(health_->mutex_) {
    if (std::exchange(finished_, true)) return;
    health_->watchers_.erase(this);
    Finish(status);
  }

  HealthService* const health_;
  const std::string service_;
  HealthCheckResponse response_;
  bool written_ = false;
  bool writing_ = false;
  bool cancelled_ = false;
  bool finished_ = false;
};

HealthService::HealthService(std::set<std::string> services) : services_(std::move(services)) {}

void HealthService::SetServing(bool serving) {
  absl::MutexLock lock(&mutex_);
  serving_ = serving;
  const std::set<Watcher*> watchers = watchers_;  // Update may end one
  for (Watcher* watcher : watchers) watcher->Update();
}

void HealthService::EndWatches() {
  absl::MutexLock lock(&mutex_);
  ended_ = true;
  const std::set<Watcher*> watchers = watchers_;
  for (Watcher* watcher : watchers) watcher->Update();
}

HealthService::Serving HealthService::StatusOf(const std::string& service) const {
  if (!service.empty() && services_.count(service) == 0) return HealthCheckResponse::SERVICE_UNKNOWN;
  return serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::MutexLock lock(&mutex_);
  const Serving status = StatusOf(request->service());
  if (status == HealthCheckResponse::SERVICE_UNKNOWN) {
    reactor->Finish(grpc::Status(grpc::StatusCode::NOT_FOUND,
                                 fmt::format("there is no service \"{}\"", Clipped(request->service()))));
  } else {
    response->set_status(status);
    reactor->Finish(grpc::Status::OK);
  }
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(grpc::CallbackServerContext* context,
                                                                    const HealthCheckRequest* request) {
  return new Watcher(this, request->service());
}

}  // namespace t6::server
