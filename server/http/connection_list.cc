#include "server/http/connection_list.h"

#include <algorithm>

#include "server/http/connection.h"

namespace t6::server {

void ConnectionList::Add(const std::shared_ptr<Connection>& connection) {
  absl::MutexLock lock(&mutex_);
  connections_.emplace(connection.get(), connection);
}

void ConnectionList::Remove(const Connection* connection) {
  absl::MutexLock lock(&mutex_);
  connections_.erase(connection);
}

std::vector<std::shared_ptr<Connection>> ConnectionList::All() const {
  std::vector<std::shared_ptr<Connection>> all;
  absl::MutexLock lock(&mutex_);
  for (const auto& [unused, weak] : connections_) {
    if (auto connection = weak.lock()) all.push_back(std::move(connection));
  }
  return all;
}

int ConnectionList::size() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(connections_.size());
}

void ConnectionList::RequestBegins() {
  absl::MutexLock lock(&mutex_);
  ++in_flight_;
}

void ConnectionList::RequestEnds() {
  absl::MutexLock lock(&mutex_);
  --in_flight_;
}

int ConnectionList::in_flight() const {
  absl::MutexLock lock(&mutex_);
  return in_flight_;
}

bool ConnectionList::WaitUntilNoRequest(absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(
                                      +[](const int* n) { return *n == 0; }, &in_flight_),
                                  deadline);
}

void ConnectionList::WaitUntilEmpty() const {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](const ConnectionList* list) { return list->connections_.empty(); }, this));
}

std::shared_ptr<void> ConnectionList::ReserveBody(size_t bytes, size_t bound) {
  if (bytes == 0) return shared_from_this();
  absl::MutexLock lock(&mutex_);
  if (bytes > bound - std::min(bound, body_bytes_)) return nullptr;
  body_bytes_ += bytes;
  return std::shared_ptr<void>(this, [list = shared_from_this(), bytes](void*) {
    absl::MutexLock release(&list->mutex_);
    list->body_bytes_ -= bytes;
  });
}

void ConnectionList::SetDraining() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

bool ConnectionList::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

}  // namespace t6::server
