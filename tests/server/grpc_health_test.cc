// What balancers and tools ask over gRPC: health, load reports, reflection.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>

#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/grpc/load_service.h"
#include "tests/server/grpc_fixture.h"
#include "xds/service/orca/v3/orca.grpc.pb.h"

namespace t6::server {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using testing::HasSubstr;
using xds::data::orca::v3::OrcaLoadReport;
using xds::service::orca::v3::OpenRcaService;
using xds::service::orca::v3::OrcaLoadReportRequest;

using GrpcHealthTest = GrpcTest;

TEST_F(GrpcHealthTest, HealthTellsEachServiceAndItsChanges) {
  auto stub = grpc::health::v1::Health::NewStub(channel_);
  const auto check = [&](const std::string& service, HealthCheckResponse* response) {
    HealthCheckRequest request;
    request.set_service(service);
    grpc::ClientContext context;
    return stub->Check(&context, request, response);
  };
  HealthCheckResponse response;
  for (const char* service : {"", "t6.v1.Chat", "t6.v1.Completions", "t6.v1.Models", "t6.v1.Tokenizer"}) {
    ASSERT_TRUE(check(service, &response).ok()) << service;
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  }
  EXPECT_EQ(check("t6.v1.Nothing", &response).error_code(), grpc::StatusCode::NOT_FOUND);

  grpc::ClientContext context;
  auto watch = stub->Watch(&context, {});
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_->SetServing(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  ASSERT_TRUE(check("", &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  // A watch does not hold up the end.
  server_->Stop(absl::Now() + kPatience);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

// gRPC's own client keeps the trailer for its balancers: tests/e2e/test_load_reports.py reads it from the
// wire.
TEST_F(GrpcHealthTest, TheTrailerIsALoadReport) {
  OrcaLoadReport report;
  ASSERT_TRUE(report.ParseFromString(LoadTrailer(admin_)));
  EXPECT_EQ(report.application_utilization(), 1.25);
  EXPECT_EQ(report.rps_fractional(), 12.5);
  EXPECT_EQ(report.eps(), 0.5);
  EXPECT_EQ(report.named_metrics().at("num_requests_waiting"), 3);
}

OrcaLoadReportRequest Every(int64_t seconds, int32_t nanos) {
  OrcaLoadReportRequest request;
  request.mutable_report_interval()->set_seconds(seconds);
  request.mutable_report_interval()->set_nanos(nanos);
  return request;
}

TEST_F(GrpcHealthTest, LoadReportsComeOutOfBand) {
  grpc::ClientContext context;
  auto stub = OpenRcaService::NewStub(channel_);
  const auto started = std::chrono::steady_clock::now();
  auto stream = stub->StreamCoreMetrics(&context, Every(0, 1));  // less than the least: 100 ms
  OrcaLoadReport report;
  ASSERT_TRUE(stream->Read(&report));
  EXPECT_EQ(report.application_utilization(), 1.25);
  EXPECT_EQ(report.named_metrics().at("num_requests_waiting"), 3);
  admin_.waiting = 7;
  int gaps = 0;
  do {  // those of before may be on their way
    ASSERT_TRUE(stream->Read(&report));
    ++gaps;
  } while (report.named_metrics().at("num_requests_waiting") == 3);
  EXPECT_EQ(report.named_metrics().at("num_requests_waiting"), 7);
  EXPECT_GE(std::chrono::steady_clock::now() - started, gaps * std::chrono::milliseconds(100));
  EXPECT_EQ(server_->calls_in_flight(), 0) << "who watches must not hold up a drain";
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GrpcHealthTest, LoadStreamsEndWithTheServer) {
  auto stub = OpenRcaService::NewStub(channel_);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<OrcaLoadReport>>> streams;
  // Absurd intervals too: they wait for their timer when the end comes.
  for (const OrcaLoadReportRequest& request : {Every(std::numeric_limits<int64_t>::max(), 999'999'999),
                                               Every(-5, -5), Every(0, 0), Every(3600, 0)}) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub->StreamCoreMetrics(contexts.back().get(), request));
    OrcaLoadReport report;
    ASSERT_TRUE(streams.back()->Read(&report));
  }
  server_->Stop(absl::Now() + kPatience);
  for (auto& stream : streams) {
    OrcaLoadReport report;
    while (stream->Read(&report)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  }
}

TEST_F(GrpcHealthTest, LoadStreamsCancelledAtRandomMomentsLeaveNothing) {
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([this, i] {
      auto stub = OpenRcaService::NewStub(channel_);
      for (int n = 0; n < 25; ++n) {
        grpc::ClientContext context;
        auto stream = stub->StreamCoreMetrics(&context, Every(0, 1));
        OrcaLoadReport report;
        for (int reads = 0; reads < (i + n) % 3; ++reads) stream->Read(&report);
        context.TryCancel();
        stream->Finish();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  server_->Stop(absl::Now() + kPatience);
}

// Asks in the wire's bytes, because no package of Debian carries the protocol's headers.
TEST_F(GrpcHealthTest, ReflectionListsTheServices) {
  grpc::GenericStub stub(channel_);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  auto call =
      stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  ASSERT_TRUE(wait());
  const grpc::Slice list_services(std::string("\x3a\x00", 2));  // field 7, ""
  call->Write(grpc::ByteBuffer(&list_services, 1), nullptr);
  ASSERT_TRUE(wait());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(wait());
  grpc::Slice bytes;
  ASSERT_TRUE(answer.DumpToSingleSlice(&bytes).ok());
  const std::string text(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  for (const char* service : {"t6.v1.Chat", "t6.v1.Completions", "t6.v1.Models", "t6.v1.Tokenizer",
                              "grpc.health.v1.Health", "xds.service.orca.v3.OpenRcaService"}) {
    EXPECT_THAT(text, HasSubstr(service));
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
}

}  // namespace
}  // namespace t6::server
