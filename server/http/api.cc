#include "server/http/api.h"

#include <boost/asio/post.hpp>
#include <boost/beast/core/string.hpp>

#include "server/auth.h"
#include "server/error_map.h"
#include "server/http/completion_stream.h"
#include "server/http/offload.h"
#include "server/http/openai_replies.h"
#include "server/http/openai_requests.h"
#include "server/http/web_routes.h"

namespace t6::server {
namespace {

template <typename T>
HttpReply JsonOrError(const StatusOr<T>& result) {
  return result.ok() ? JsonReply(ToJson(*result)) : ErrorReply(result.status());
}

bool IsJson(std::string_view content_type) {
  std::string_view type = content_type.substr(0, content_type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.remove_suffix(1);
  return boost::beast::iequals({type.data(), type.size()}, "application/json");
}

// Chat and text completions alike, whole or streamed.
template <typename Events, typename Request, typename Response, typename Chunk>
std::shared_ptr<void> Generate(GenerationHandler<Request, Response, Chunk>& handler,
                               const StatusOr<ParsedCall<Request>>& call, const HttpRequest& http,
                               const HttpApp::Reply& reply) {
  const auto fail = [&](const Status& status) {
    reply(ErrorReply(status));
    return nullptr;
  };
  if (!call.ok()) return fail(call.status());
  CallContext context;
  context.request_id = http.request_id;
  context.tenant = http.tenant;
  context.transport = "http";
  if (call->shape.stream) {
    auto running = handler.Stream(call->request, context);
    if (!running.ok()) return fail(running.status());
    auto stream = std::make_shared<CompletionStream<Chunk, Events>>(std::move(*running), Events(call->shape),
                                                                    http.executor);
    stream->Start(reply, ErrorReply);
    return stream;
  }
  const auto done = [executor = http.executor, shape = call->shape, reply](StatusOr<Response> response) {
    HttpReply made = response.ok() ? JsonReply(ToJson(*response, shape)) : ErrorReply(response.status());
    boost::asio::post(executor, [reply, made = std::move(made)]() mutable { reply(std::move(made)); });
  };
  auto running = handler.Create(call->request, context, done);
  if (!running.ok()) return fail(running.status());
  return std::shared_ptr<UnaryCall>(std::move(*running));
}

}  // namespace

HttpApi::HttpApi(const Handlers& handlers, const Admin& admin, const HttpConfig& config, bool with_metrics)
    : AdminApi(admin, with_metrics),
      handlers_(handlers),
      admin_(admin),
      max_json_depth_(config.max_json_depth),
      cors_(config.cors_origins),
      hosts_(config.allowed_hosts, /*is_local=*/handlers.keys == nullptr && IsLoopback(config.address.host)) {
  AddWebRoutes(router_);
  AddModelRoutes();
}

void HttpApi::AddModelRoutes() {
  AddPost("/v1/chat/completions", handlers_.prompts,
          [this](const HttpRequest& request, const std::string&, const Reply& reply) {
            return Generate<ChatEvents>(*handlers_.chat, ParseChatRequest(request.body, max_json_depth_),
                                        request, reply);
          });
  AddPost("/v1/completions", handlers_.prompts,
          [this](const HttpRequest& request, const std::string&, const Reply& reply) {
            return Generate<CompletionEvents>(
                *handlers_.completion, ParseCompletionRequest(request.body, max_json_depth_), request, reply);
          });
  AddPost("/tokenize", handlers_.texts,
          [this](const HttpRequest& request, const std::string&, const Reply& reply) {
            const auto parsed = ParseTokenizeRequest(request.body, max_json_depth_);
            reply(parsed.ok() ? JsonOrError(handlers_.info->Tokenize(*parsed)) : ErrorReply(parsed.status()));
            return nullptr;
          });
  AddPost(
      "/detokenize", handlers_.texts,
      [this](const HttpRequest& request, const std::string&, const Reply& reply) {
        const auto parsed = ParseDetokenizeRequest(request.body, max_json_depth_);
        reply(parsed.ok() ? JsonOrError(handlers_.info->Detokenize(*parsed)) : ErrorReply(parsed.status()));
        return nullptr;
      });
  AddModelRoute("GET", "/v1/models", [this](const HttpRequest&, const std::string&, const Reply& reply) {
    reply(JsonReply(ToJson(handlers_.info->ListModels())));
    return nullptr;
  });
  AddModelRoute("GET", "/v1/models/*", [this](const HttpRequest&, const std::string& id, const Reply& reply) {
    reply(JsonOrError(handlers_.info->GetModel(id)));
    return nullptr;
  });
}

void HttpApi::AddModelRoute(std::string method, std::string pattern, RouteFunction function) {
  router_.Add(
      std::move(method), std::move(pattern),
      [this, function = std::move(function)](HttpRequest& request, const std::string& tail,
                                             const Reply& plain) -> std::shared_ptr<void> {
        if (const Status known = hosts_.Check(request); !known.ok()) {
          plain(ErrorReply(known));
          return nullptr;
        }
        const Reply reply = WithLoad(request, plain);
        if (handlers_.keys != nullptr) {
          auto tenant = handlers_.keys->Check(request.Header("authorization"), "http");
          if (!tenant.ok()) {
            reply(ErrorReply(tenant.status()));
            return nullptr;
          }
          request.tenant = *std::move(tenant);
        }
        if (admin_.accepts_requests()) return function(request, tail, reply);
        const bool starting = admin_.state() == ServingState::kStarting;
        reply(ErrorReply(starting ? Unavailable("the server is loading its model; try again soon")
                                  : Unavailable("the server is shutting down and takes no new requests")));
        return nullptr;
      });
}

// Measured when the answer's headers leave, which of a stream is at its first token.
HttpApp::Reply HttpApi::WithLoad(const HttpRequest& request, const Reply& reply) const {
  const std::string format(request.Header("endpoint-load-metrics-format"));
  if (format.empty()) return reply;
  return [this, format, reply](HttpReply answer) {
    if (auto load = LoadHeader(admin_.Load(), format)) {
      answer.headers.emplace_back("endpoint-load-metrics", *std::move(load));
    }
    reply(std::move(answer));
  };
}

void HttpApi::AddPost(std::string path, Executor* executor, RouteFunction function) {
  AddModelRoute(
      "POST", std::move(path),
      [this, function = OffloadedTo(executor, std::move(function))](
          HttpRequest& request, const std::string& tail, const Reply& reply) -> std::shared_ptr<void> {
        // A web page cannot send this type to another origin unasked, hence cannot drive a local daemon.
        if (const auto type = request.Header("content-type"); !IsJson(type)) {
          reply(Error(415, fmt::format("Content-Type must be application/json, got {}",
                                       type.empty() ? "none" : Shortened(Json(type)))));
          return nullptr;
        }
        if (const auto coding = request.Header("content-encoding"); !coding.empty() && coding != "identity") {
          reply(Error(415, fmt::format("Content-Encoding {} is not supported", Shortened(Json(coding)))));
          return nullptr;
        }
        return function(request, tail, reply);
      });
}

std::shared_ptr<void> HttpApi::Handle(HttpRequest request, Reply reply) {
  CorsPolicy::Headers headers = cors_.HeadersFor(request);
  if (headers.empty()) return AdminApi::Handle(std::move(request), std::move(reply));
  Reply with_headers = [reply = std::move(reply), headers = std::move(headers)](HttpReply answer) {
    answer.headers.insert(answer.headers.end(), headers.begin(), headers.end());
    reply(std::move(answer));
  };
  if (!cors_.IsAllowedPreflight(request))
    return AdminApi::Handle(std::move(request), std::move(with_headers));
  with_headers(CorsPolicy::PreflightReply());
  return nullptr;
}

}  // namespace t6::server
