#include "server/executor.h"

#include <boost/asio/post.hpp>

#include "engine/base/check.h"

namespace t6::server {

Executor::Executor(int n_threads, int max_waiting)
    : max_waiting_(max_waiting), io_(n_threads), guard_(boost::asio::make_work_guard(io_)) {
  T6_CHECK(n_threads > 0);
  for (int i = 0; i < n_threads; ++i) threads_.emplace_back([this] { io_.run(); });
}

Executor::~Executor() { Stop(); }

void Executor::Post(std::function<void()> work) { boost::asio::post(io_, std::move(work)); }

Status Executor::TryPost(std::function<void()> work) {
  if (waiting_++ >= max_waiting_) {
    --waiting_;
    return ResourceExhausted("{} requests wait for the same work, the most that may", max_waiting_);
  }
  Post([this, work = std::move(work)] {
    --waiting_;
    work();
  });
  return absl::OkStatus();
}

void Executor::Stop() {
  io_.stop();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace t6::server
