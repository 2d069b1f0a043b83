// The threads that handlers and HTTP share: one boost::asio io_context, run by a few threads.
// Nothing that waits may run here. Thread-safe.
#pragma once

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "engine/base/status.h"

namespace t6::server {

class Executor {
 public:
  static constexpr int kUnbounded = std::numeric_limits<int>::max();
  explicit Executor(int n_threads, int max_waiting = kUnbounded);
  ~Executor();  // Stop()

  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  boost::asio::io_context& io() { return io_; }
  void Post(std::function<void()> work);
  // For what strangers ask: RESOURCE_EXHAUSTED, and nothing posted, while so much waits that was posted by
  // this.
  Status TryPost(std::function<void()> work);
  int waiting() const { return waiting_; }
  // Lets running work end, drops what is queued, joins the threads. Not from a thread of its own. Idempotent.
  void Stop();

 private:
  const int max_waiting_;
  std::atomic<int> waiting_{0};
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_;
  std::vector<std::thread> threads_;
};

}  // namespace t6::server
