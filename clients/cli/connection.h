// The channel to the server, its services, and what their errors mean to a user.
#pragma once

#include <memory>
#include <string>

#include "grpc/health/v1/health.grpc.pb.h"
#include "t6/v1/chat.grpc.pb.h"
#include "t6/v1/models.grpc.pb.h"

namespace t6::cli {

enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2, kUnreachable = 3, kInterrupted = 130 };

class Connection {
 public:
  // Does not connect yet.
  explicit Connection(const std::string& address);

  // Waits a few seconds for the server; false, and a message on standard error, when nothing answers.
  bool Reach();

  // Prints what went wrong and returns the exit code for it.
  ExitCode Explain(const grpc::Status& status) const;

  std::unique_ptr<v1::Chat::Stub> chat;
  std::unique_ptr<v1::Models::Stub> models;
  std::unique_ptr<grpc::health::v1::Health::Stub> health;

 private:
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace t6::cli
