// The client of the server that the user named, and what its errors mean to them.
#pragma once

#include <grpcpp/channel.h>

#include <string>

#include "clients/cli/options.h"
#include "t6client/client.h"

namespace t6::cli {

enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2, kUnreachable = 3, kInterrupted = 130 };

// Waits until the channel is connected. False at once when nobody listens there, and after a while when
// whoever does is silent: a busy server may take seconds to say hello.
bool Reach(grpc::Channel& channel);

class Connection {
 public:
  // Does not connect yet.
  explicit Connection(const Options& options);

  // False, and a message on standard error, when nothing answers.
  bool Reach();

  // Prints what went wrong and returns the exit code for it.
  ExitCode Explain(const absl::Status& status) const;

  const client::Client client;

 private:
  const std::string address_;
};

}  // namespace t6::cli
