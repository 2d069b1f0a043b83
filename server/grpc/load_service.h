// Load reports for gRPC's balancers: the trailer of every answer and xds.service.orca.v3.OpenRcaService out
// of band. Thread-safe. Our own, because gRPC 1.51's recorder lacks the fields and has no service.
#pragma once

#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/admin.h"
#include "server/executor.h"
#include "xds/service/orca/v3/orca.grpc.pb.h"

namespace t6::server {

inline constexpr char kLoadTrailer[] = "endpoint-load-metrics-bin";

xds::data::orca::v3::OrcaLoadReport ToProto(const LoadReport& report);
// The trailer's value: the message's bytes, which gRPC itself encodes.
std::string LoadTrailer(const Admin& admin);

// Streams do not count as calls in flight: a balancer that watches must not hold up a drain.
class LoadService final : public xds::service::orca::v3::OpenRcaService::CallbackService {
 public:
  // Both outlive it, and the executor runs as long as it does.
  LoadService(const Admin* admin, Executor* executor) : admin_(*admin), executor_(*executor) {}

  // Ends every stream, so that the server can stop.
  void EndStreams() ABSL_LOCKS_EXCLUDED(mutex_);

  grpc::ServerWriteReactor<xds::data::orca::v3::OrcaLoadReport>* StreamCoreMetrics(
      grpc::CallbackServerContext* context,
      const xds::service::orca::v3::OrcaLoadReportRequest* request) override;

 private:
  class Stream;

  const Admin& admin_;
  Executor& executor_;
  absl::Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<Stream*> streams_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace t6::server
