#include "server/grpc/load_service.h"

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <utility>

namespace t6::server {

using xds::data::orca::v3::OrcaLoadReport;
using xds::service::orca::v3::OrcaLoadReportRequest;

namespace {

constexpr std::chrono::milliseconds kDefaultInterval{1000}, kShortestInterval{100};
constexpr std::chrono::milliseconds kLongestInterval = std::chrono::hours(1);

// What the client asks for, within bounds: any 64-bit number of seconds may come.
std::chrono::milliseconds IntervalOf(const OrcaLoadReportRequest& request) {
  const auto& asked = request.report_interval();
  if (asked.seconds() == 0 && asked.nanos() == 0) return kDefaultInterval;
  const int64_t seconds = std::clamp<int64_t>(asked.seconds(), 0, 3600);
  const std::chrono::milliseconds interval(seconds * 1000 + asked.nanos() / 1'000'000);
  return std::clamp(interval, kShortestInterval, kLongestInterval);
}

}  // namespace

OrcaLoadReport ToProto(const LoadReport& report) {
  OrcaLoadReport proto;
  proto.set_application_utilization(report.application_utilization);
  proto.set_rps_fractional(report.requests_per_second);
  proto.set_eps(report.errors_per_second);
  for (const auto& [name, value] : report.named) (*proto.mutable_named_metrics())[name] = value;
  return proto;
}

std::string LoadTrailer(const Admin& admin) { return ToProto(admin.Load()).SerializeAsString(); }

// One stream. All its state is guarded by the service's mutex. It writes or waits for its timer, one of the
// two until it is finished; what ends it lets that come to its end first, which then finishes.
class LoadService::Stream final : public grpc::ServerWriteReactor<OrcaLoadReport> {
 public:
  Stream(LoadService* service, std::chrono::milliseconds interval)
      : service_(service), interval_(interval), timer_(service->executor_.io()) {
    absl::MutexLock lock(&service_->mutex_);
    service_->streams_.insert(this);
    Report();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&service_->mutex_);
    cancelled_ |= !ok;
    if (cancelled_ || service_->ended_) return End();
    waiting_ = true;
    timer_.expires_after(interval_);
    timer_.async_wait([this](const boost::system::error_code&) {
      absl::MutexLock timer_lock(&service_->mutex_);
      waiting_ = false;
      Report();
    });
  }
  void OnCancel() override {
    absl::MutexLock lock(&service_->mutex_);
    cancelled_ = true;
    Wake();
  }
  void OnDone() override { delete this; }

  void Wake() ABSL_EXCLUSIVE_LOCKS_REQUIRED(service_->mutex_) {
    if (waiting_) timer_.cancel();
  }

 private:
  void Report() ABSL_EXCLUSIVE_LOCKS_REQUIRED(service_->mutex_) {
    if (cancelled_ || service_->ended_) return End();
    report_ = ToProto(service_->admin_.Load());
    StartWrite(&report_);
  }
  void End() ABSL_EXCLUSIVE_LOCKS_REQUIRED(service_->mutex_) {
    service_->streams_.erase(this);
    Finish(cancelled_ ? grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone")
                      : grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"));
  }

  LoadService* const service_;
  const std::chrono::milliseconds interval_;
  boost::asio::steady_timer timer_;
  OrcaLoadReport report_;
  bool waiting_ = false;
  bool cancelled_ = false;
};

void LoadService::EndStreams() {
  absl::MutexLock lock(&mutex_);
  ended_ = true;
  for (Stream* stream : streams_) stream->Wake();
}

grpc::ServerWriteReactor<OrcaLoadReport>* LoadService::StreamCoreMetrics(
    grpc::CallbackServerContext* context, const OrcaLoadReportRequest* request) {
  return new Stream(this, IntervalOf(*request));
}

}  // namespace t6::server
