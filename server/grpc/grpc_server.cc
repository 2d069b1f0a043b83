#include "server/grpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include "engine/base/check.h"
#include "server/grpc/health_service.h"
#include "server/grpc/load_service.h"
#include "server/grpc/services.h"

namespace t6::server {
namespace {

// gRPC does not say why it cannot listen; the system does when asked again.
std::string WhyNot(const ListenAddress& address) {
  using boost::asio::ip::tcp;
  boost::asio::io_context io;
  tcp::acceptor acceptor(io);
  boost::system::error_code error;
  const tcp::endpoint endpoint(boost::asio::ip::make_address(address.host, error), address.port);
  if (!error) acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(1, error);
  return error ? error.message() : "gRPC refuses the address";
}

size_t MostBytes(const GrpcConfig& config) {
  return static_cast<size_t>(config.max_large_messages) * static_cast<size_t>(config.max_message_bytes);
}

void SetLimits(grpc::ServerBuilder& builder, const GrpcConfig& config) {
  builder.SetMaxReceiveMessageSize(config.max_message_bytes);
  // What is being received may take as much as over HTTP; what was received is CallBudget's.
  grpc::ResourceQuota quota("t6d");
  quota.Resize(MostBytes(config));
  builder.SetResourceQuota(quota);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, config.max_concurrent_streams);
  // Two daemons must not share a port by accident.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A peer that vanished without a word is noticed within a minute and a half.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 32 << 10);
}

}  // namespace

struct GrpcServer::Impl {
  Impl(const GrpcConfig& config, const Handlers& handlers, const Admin* admin, Executor* executor)
      : deps{handlers, admin, executor, std::make_shared<CallBudget>(config.max_calls, MostBytes(config))},
        load(admin, executor) {
    T6_CHECK(handlers.prompts != nullptr && handlers.texts != nullptr);
  }

  GrpcDeps deps;
  ChatService chat{&deps};
  CompletionsService completions{&deps};
  ModelsService models{&deps};
  TokenizerService tokenizer{&deps};
  HealthService health{{v1::Chat::service_full_name(), v1::Completions::service_full_name(),
                        v1::Models::service_full_name(), v1::Tokenizer::service_full_name()}};
  LoadService load;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcConfig& config, const Handlers& handlers,
                                                        const Admin* admin, Executor* executor) {
  // Static initialisers of a static library are dropped by the linker unless something is called.
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto impl = std::make_unique<Impl>(config, handlers, admin, executor);
  grpc::ServerBuilder builder;
  SetLimits(builder, config);
  builder.AddListeningPort(config.address.ToString(), grpc::InsecureServerCredentials(), &impl->port);
  for (grpc::Service* service : std::initializer_list<grpc::Service*>{
           &impl->chat, &impl->completions, &impl->models, &impl->tokenizer, &impl->health, &impl->load}) {
    builder.RegisterService(service);
  }
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || impl->port == 0) {
    return Unavailable("gRPC cannot listen on {}: {}", config.address.ToString(), WhyNot(config.address));
  }
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(impl)));
}

GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GrpcServer::~GrpcServer() { Stop(absl::InfinitePast()); }

int GrpcServer::port() const { return impl_->port; }

int GrpcServer::calls_in_flight() const { return impl_->deps.budget->calls(); }

void GrpcServer::SetServing(bool serving) { impl_->health.SetServing(serving); }

void GrpcServer::Stop(absl::Time deadline) {
  if (impl_->server == nullptr) return;
  impl_->health.EndWatches();
  impl_->load.EndStreams();
  impl_->server->Shutdown(absl::ToChronoTime(std::max(deadline, absl::Now())));
  impl_->server->Wait();
  impl_->server = nullptr;
}

}  // namespace t6::server
