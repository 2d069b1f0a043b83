// Listens and owns every connection (connection.h). Runs on the given io_context, whatever its number of
// threads. The application outlives the server. Thread-safe.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>

#include "absl/time/time.h"
#include "engine/base/status.h"
#include "server/config.h"
#include "server/http/http_types.h"

namespace t6::server {

class HttpServer {
 public:
  // Listens and accepts from now on. The error names the address.
  static StatusOr<std::unique_ptr<HttpServer>> Start(boost::asio::io_context& io, const HttpConfig& config,
                                                     HttpApp* app);
  // Closes all connections without waiting: call Stop first while the io_context runs.
  ~HttpServer();

  int port() const;
  int connections() const;
  int requests_in_flight() const;  // from the last byte of a request to the last byte of its answer

  // Accepts no more and closes idle connections; those that answer close when they have answered.
  void Drain();
  // Drain, wait for the answers in flight until `deadline`, close the rest. After it nothing calls the
  // application and nothing of it is held. False when something was cut off. The io_context must run; not on
  // its threads.
  bool Stop(absl::Time deadline);

 private:
  struct State;
  explicit HttpServer(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace t6::server
