// The threads that handlers and HTTP share: one boost::asio io_context, run by a few threads.
// Nothing that waits may run here. Thread-safe.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <thread>
#include <vector>

namespace t6::server {

class Executor {
 public:
  explicit Executor(int n_threads);
  ~Executor();  // Stop()

  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  boost::asio::io_context& io() { return io_; }
  void Post(std::function<void()> work);
  // Lets running work end, drops what is queued, joins the threads. Not from a thread of its own. Idempotent.
  void Stop();

 private:
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_;
  std::vector<std::thread> threads_;
};

}  // namespace t6::server
