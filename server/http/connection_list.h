// Who is connected, how many requests are being answered and how much is being received: for the bounds, the
// drain and the stop. Holds connections weakly: each lives by its own pending operations. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace t6::server {

class Connection;

class ConnectionList : public std::enable_shared_from_this<ConnectionList> {
 public:
  void Add(const std::shared_ptr<Connection>& connection);
  void Remove(const Connection* connection);
  std::vector<std::shared_ptr<Connection>> All() const;
  int size() const;

  void RequestBegins();
  void RequestEnds();
  int in_flight() const;
  bool WaitUntilNoRequest(absl::Time deadline) const;
  void WaitUntilEmpty() const;

  // Bodies that are received or wait for their handler may take `bound` bytes together; null: not now. Given
  // back by dropping it.
  std::shared_ptr<void> ReserveBody(size_t bytes, size_t bound);

  // From now on connections close once they have answered.
  void SetDraining();
  bool draining() const;

 private:
  mutable absl::Mutex mutex_;
  std::map<const Connection*, std::weak_ptr<Connection>> connections_;
  int in_flight_ = 0;
  size_t body_bytes_ = 0;
  bool draining_ = false;
};

}  // namespace t6::server
