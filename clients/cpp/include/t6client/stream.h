// An answer that comes in pieces. Owns its call: destroying it cancels what is still running.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <cstddef>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stop_token>
#include <utility>

#include "absl/status/status.h"
#include "t6client/status.h"

namespace t6::client {

// One call's context: it, and what cancels it. Stays where it is.
class Call {
 public:
  explicit Call(const std::stop_token& stop) : cancel_(stop, [this] { context.TryCancel(); }) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  grpc::ClientContext context;

 private:
  std::stop_callback<std::function<void()>> cancel_;
};

// Read it with `for (const Chunk& chunk : stream)` or Next, from one thread at a time; Cancel may come from
// any.
template <typename Chunk>
class Stream {
 public:
  using Reader = grpc::ClientReader<Chunk>;

  // One that never began.
  explicit Stream(absl::Status error) : status_(std::move(error)) {}
  Stream(std::unique_ptr<Call> call, std::unique_ptr<Reader> reader)
      : call_(std::move(call)), reader_(std::move(reader)) {}
  Stream(Stream&&) noexcept = default;
  Stream& operator=(Stream&& other) noexcept {
    Stream old(std::move(*this));
    call_ = std::move(other.call_), reader_ = std::move(other.reader_), status_ = std::move(other.status_);
    return *this;
  }
  ~Stream() {
    if (reader_ == nullptr) return;
    Cancel();
    End();
  }

  // Waits for the next piece; false at the end.
  bool Next(Chunk& chunk) {
    if (reader_ == nullptr) return false;
    if (reader_->Read(&chunk)) return true;
    End();
    return false;
  }

  // The server stops computing within one step, and Next ends with CANCELLED.
  void Cancel() {
    if (call_ != nullptr) call_->context.TryCancel();
  }

  // How the stream ended; OK while it has not.
  const absl::Status& status() const { return status_; }

  // Reads as it is advanced: one pass, one iterator.
  class iterator {
   public:
    using value_type = Chunk;
    using difference_type = std::ptrdiff_t;

    explicit iterator(Stream* stream) : stream_(stream) { ++*this; }
    const Chunk& operator*() const { return chunk_; }
    const Chunk* operator->() const { return &chunk_; }
    iterator& operator++() {
      if (!stream_->Next(chunk_)) stream_ = nullptr;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return stream_ == nullptr; }

   private:
    Stream* stream_;
    Chunk chunk_;
  };
  iterator begin() { return iterator(this); }
  std::default_sentinel_t end() const { return {}; }

 private:
  void End() {
    const grpc::Status status = reader_->Finish();
    status_ = ToStatus(status, call_->context);
    reader_ = nullptr;
  }

  std::unique_ptr<Call> call_;
  std::unique_ptr<Reader> reader_;  // null once the stream has ended; goes before the call
  absl::Status status_;
};

}  // namespace t6::client
