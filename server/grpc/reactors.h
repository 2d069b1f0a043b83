// The two kinds of generation RPC. A reactor lives until gRPC's OnDone; the handler's answers come on the
// executor and may come after that, so they go through a shared state whose mutex orders them against
// cancellation.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/grpc/grpc_call.h"

namespace t6::server {

// One answer for one request.
template <typename Handler, typename Request, typename Response>
class UnaryReactor final : public grpc::ServerUnaryReactor {
 public:
  UnaryReactor(const GrpcDeps& deps, Handler* handler, grpc::CallbackServerContext* context,
               const Request* request, Response* response)
      : deps_(deps), bytes_(request->ByteSizeLong()), state_(std::make_shared<State>()) {
    state_->reactor = this;
    state_->context = context;
    state_->admin = deps.admin;
    CallContext call = BeginCall(context);
    if (const Status room = deps.budget->Take(bytes_); !room.ok()) {
      state_->Refuse(room);
      return;
    }
    // `request` and `response` live until Finish, which until this ran only comes after `begun`.
    deps.handlers.prompts->Post(
        [state = state_, &deps, handler, call = std::move(call), request, response]() mutable {
          state->Begin(deps, handler, std::move(call), *request, response);
        });
  }

  void OnCancel() override { state_->Cancel(); }
  void OnDone() override {
    deps_.budget->GiveBack(bytes_);
    delete this;
  }

 private:
  struct State : std::enable_shared_from_this<State> {
    absl::Mutex mutex;
    UnaryReactor* reactor ABSL_GUARDED_BY(mutex) = nullptr;  // null once finished
    grpc::CallbackServerContext* context = nullptr;          // lives as long as the reactor
    const Admin* admin = nullptr;
    std::unique_ptr<UnaryCall> call ABSL_GUARDED_BY(mutex);
    bool begun ABSL_GUARDED_BY(mutex) = false;
    bool cancelled ABSL_GUARDED_BY(mutex) = false;

    void Refuse(const Status& status) {
      absl::MutexLock lock(&mutex);
      begun = true;
      Finish(status);
    }

    void Begin(const GrpcDeps& deps, Handler* handler, CallContext call_context, const Request& request,
               Response* response) {
      {
        absl::MutexLock lock(&mutex);
        if (cancelled) return Finish(absl::CancelledError("the client cancelled the request"));
      }
      StatusOr<std::unique_ptr<UnaryCall>> started =
          CheckedCreate(deps, handler, &call_context, request, response);
      std::unique_ptr<UnaryCall> dropped;  // destroyed outside the lock
      absl::MutexLock lock(&mutex);
      begun = true;
      if (!started.ok()) return Finish(started.status());
      if (cancelled) {
        dropped = *std::move(started);
        return Finish(absl::CancelledError("the client cancelled the request"));
      }
      if (reactor != nullptr) call = *std::move(started);  // else it is answered already
    }

    StatusOr<std::unique_ptr<UnaryCall>> CheckedCreate(const GrpcDeps& deps, Handler* handler,
                                                       CallContext* call_context, const Request& request,
                                                       Response* response) {
      T6_RETURN_IF_ERROR(Admit(deps, *context, call_context));
      return handler->Create(request, *call_context,
                             [self = this->shared_from_this(), response](StatusOr<Response> answer) {
                               self->Answer(std::move(answer), response);
                             });
    }

    void Answer(StatusOr<Response> answer, Response* response) {
      std::unique_ptr<UnaryCall> ended;
      absl::MutexLock lock(&mutex);
      ended = std::move(call);
      if (reactor == nullptr) return;
      const Status status = answer.status();
      if (status.ok()) *response = *std::move(answer);
      Finish(status);
    }

    void Cancel() {
      std::unique_ptr<UnaryCall> dropped;
      absl::MutexLock lock(&mutex);
      cancelled = true;
      dropped = std::move(call);
      if (begun) Finish(absl::CancelledError("the client cancelled the request"));
    }

    void Finish(const Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
      if (reactor == nullptr) return;
      std::exchange(reactor, nullptr)->Finish(EndCall(status, *admin, context));
    }
  };

  const GrpcDeps& deps_;
  const size_t bytes_;  // of the request
  const std::shared_ptr<State> state_;
};

// A stream of answers: pulls a chunk, writes it, pulls the next. One write is in flight at most, so a slow
// reader's chunks merge on our side instead of piling up in gRPC's.
template <typename Handler, typename Request, typename Chunk>
class StreamReactor final : public grpc::ServerWriteReactor<Chunk> {
 public:
  StreamReactor(const GrpcDeps& deps, Handler* handler, grpc::CallbackServerContext* context,
                const Request* request)
      : deps_(deps), bytes_(request->ByteSizeLong()), state_(std::make_shared<State>()) {
    state_->reactor = this;
    state_->context = context;
    state_->admin = deps.admin;
    CallContext call = BeginCall(context);
    if (const Status room = deps.budget->Take(bytes_); !room.ok()) {
      state_->Refuse(room);
      return;
    }
    deps.handlers.prompts->Post([state = state_, &deps, handler, call = std::move(call), request]() mutable {
      state->Begin(deps, handler, std::move(call), *request);
    });
  }

  void OnWriteDone(bool ok) override { state_->Written(ok); }
  void OnCancel() override { state_->Cancel(); }
  void OnDone() override {
    deps_.budget->GiveBack(bytes_);
    delete this;
  }

 private:
  struct State : std::enable_shared_from_this<State> {
    absl::Mutex mutex;
    StreamReactor* reactor ABSL_GUARDED_BY(mutex) = nullptr;  // null once finished
    grpc::CallbackServerContext* context = nullptr;           // lives as long as the reactor
    const Admin* admin = nullptr;
    std::unique_ptr<StreamingCall<Chunk>> call ABSL_GUARDED_BY(mutex);
    Chunk chunk ABSL_GUARDED_BY(mutex);  // being written
    bool begun ABSL_GUARDED_BY(mutex) = false;
    bool writing ABSL_GUARDED_BY(mutex) = false;
    bool cancelled ABSL_GUARDED_BY(mutex) = false;

    void Refuse(const Status& status) {
      absl::MutexLock lock(&mutex);
      begun = true;
      Finish(status);
    }

    void Begin(const GrpcDeps& deps, Handler* handler, CallContext call_context, const Request& request) {
      {
        absl::MutexLock lock(&mutex);
        if (cancelled) return Finish(absl::CancelledError("the client cancelled the request"));
      }
      StatusOr<std::unique_ptr<StreamingCall<Chunk>>> started =
          CheckedStream(deps, handler, &call_context, request);
      absl::MutexLock lock(&mutex);
      begun = true;
      if (!started.ok()) return Finish(started.status());
      call = *std::move(started);
      if (cancelled) return Finish(absl::CancelledError("the client cancelled the request"));
      Pull();
    }

    StatusOr<std::unique_ptr<StreamingCall<Chunk>>> CheckedStream(const GrpcDeps& deps, Handler* handler,
                                                                  CallContext* call_context,
                                                                  const Request& request) {
      T6_RETURN_IF_ERROR(Admit(deps, *context, call_context));
      return handler->Stream(request, *call_context);
    }

    void Pull() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
      call->Next([self = this->shared_from_this()](StatusOr<std::optional<Chunk>> next) {
        self->Take(std::move(next));
      });
    }

    void Take(StatusOr<std::optional<Chunk>> next) {
      absl::MutexLock lock(&mutex);
      if (reactor == nullptr) return;
      if (!next.ok()) return Finish(next.status());
      if (!next->has_value()) return Finish(absl::OkStatus());
      chunk = std::move(**next);
      writing = true;
      reactor->StartWrite(&chunk);
    }

    void Written(bool ok) {
      absl::MutexLock lock(&mutex);
      writing = false;
      if (!ok || cancelled) return Finish(absl::CancelledError("the client is gone"));
      Pull();
    }

    void Cancel() {
      absl::MutexLock lock(&mutex);
      cancelled = true;
      if (call != nullptr) call->Cancel();
      // A write in flight still uses `chunk`: Written follows and finishes.
      if (begun && !writing) Finish(absl::CancelledError("the client cancelled the request"));
    }

    void Finish(const Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
      if (reactor == nullptr) return;
      call = nullptr;
      std::exchange(reactor, nullptr)->Finish(EndCall(status, *admin, context));
    }
  };

  const GrpcDeps& deps_;
  const size_t bytes_;  // of the request
  const std::shared_ptr<State> state_;
};

}  // namespace t6::server
