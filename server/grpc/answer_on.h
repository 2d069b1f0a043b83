// A unary RPC that is answered at once: models, and the tokenizer.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <utility>

#include "server/grpc/grpc_call.h"

namespace t6::server {

// Runs `answer` on `executor` and finishes with its result.
template <typename Request, typename Response, typename Answer>
grpc::ServerUnaryReactor* AnswerOn(Executor& executor, const GrpcDeps& deps,
                                   grpc::CallbackServerContext* context, const Request* request,
                                   Response* response, Answer answer) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const size_t bytes = request->ByteSizeLong();
  // Once it has finished the server, and `deps` with it, may end; but until then the call counts.
  const auto finish = [&deps, context, reactor, bytes, budget = deps.budget](const Status& status) {
    reactor->Finish(EndCall(status, *deps.admin, context));
    budget->GiveBack(bytes);
  };
  CallContext call = BeginCall(context);
  if (const Status room = deps.budget->Take(bytes); !room.ok()) {
    finish(room);
    return reactor;
  }
  const Status accepted = executor.TryPost([&deps, context, request, response, finish, call = std::move(call),
                                            answer = std::move(answer)]() mutable {
    Status status = Admit(deps, *context, &call);
    if (status.ok()) {
      StatusOr<Response> result = answer(*request);
      status = result.status();
      if (result.ok()) *response = *std::move(result);
    }
    finish(status);
  });
  if (!accepted.ok()) finish(accepted);
  return reactor;
}

}  // namespace t6::server
