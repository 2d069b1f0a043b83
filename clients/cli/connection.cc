#include "clients/cli/connection.h"

#include <fmt/format.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <cstdio>

namespace t6::cli {
namespace {

constexpr int kLargestMessage = 64 << 20;
constexpr std::chrono::seconds kConnectTimeout(3);

const char* NameOf(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::CANCELLED:
      return "cancelled";
    case grpc::StatusCode::INVALID_ARGUMENT:
      return "refused";
    case grpc::StatusCode::NOT_FOUND:
      return "not found";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "the server is at its limit, try again later";
    case grpc::StatusCode::UNAVAILABLE:
      return "the server takes no requests right now";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "out of time";
    case grpc::StatusCode::UNAUTHENTICATED:
      return "not allowed";
    case grpc::StatusCode::UNIMPLEMENTED:
      return "the server does not know this call; is it a t6d?";
    default:
      return "the server failed";
  }
}

}  // namespace

Connection::Connection(const std::string& address) : address_(address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kLargestMessage);
  channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  chat = v1::Chat::NewStub(channel_);
  models = v1::Models::NewStub(channel_);
  health = grpc::health::v1::Health::NewStub(channel_);
}

bool Connection::Reach() {
  if (channel_->WaitForConnected(std::chrono::system_clock::now() + kConnectTimeout)) return true;
  fmt::print(stderr,
             "t6: no server answers at {}. Start one with `make serve` or\n"
             "    t6d --model DIR, or say where it is with --server HOST:PORT (the gRPC address).\n",
             address_);
  return false;
}

ExitCode Connection::Explain(const grpc::Status& status) const {
  fmt::print(stderr, "t6: {}: {}\n", NameOf(status.error_code()), status.error_message());
  return kFailed;
}

}  // namespace t6::cli
