// What passes between the HTTP transport and the application behind it. The transport knows connections,
// bounds and deadlines and nothing of JSON; the application never sees a socket. Everything about one request
// happens on that request's executor, the strand of its connection.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/beast/http/fields.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace t6::server {

struct HttpRequest {
  std::string method;
  std::string path;  // percent-decoded, without the query
  boost::beast::http::fields headers;
  std::string body;
  std::shared_ptr<void> body_bytes;  // the body's share of what all may take, as long as the request lives
  std::string tenant;                // filled in by the application, from the API key
  std::string request_id;            // the client's x-request-id if it is fit, else made up
  boost::asio::any_io_executor executor;

  std::string_view Header(std::string_view name) const {
    const auto value = headers[name];
    return {value.data(), value.size()};
  }
};

// The rest of a body whose length nobody knows yet. The transport pulls: at most one Next is pending, and the
// next one comes only after the last piece was written, so a slow reader holds nobody up. Destroying it
// cancels.
class BodyStream {
 public:
  struct Piece {
    std::string data;
    bool last = false;
    bool close = false;  // with `last`: the connection closes after it
  };
  virtual ~BodyStream() = default;
  // Calls `done` once, on the request's executor and not inside Next.
  virtual void Next(std::function<void(Piece)> done) = 0;
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers = {};
  std::string body = {};                    // all of it, or the first piece of `stream`
  std::shared_ptr<BodyStream> stream = {};  // none: `body` is all
  bool close = false;                       // say Connection: close, and do
};

class HttpApp {
 public:
  virtual ~HttpApp() = default;
  using Reply = std::function<void(HttpReply)>;
  // Called on request.executor; calls `reply` there, once, at once or later. The result lives until the
  // reply, or until the client has gone: dropping it then cancels what it stands for.
  virtual std::shared_ptr<void> Handle(HttpRequest request, Reply reply) = 0;
  // The body of an error that the transport itself finds, such as 413.
  virtual HttpReply Error(int status, std::string_view message) = 0;
};

}  // namespace t6::server
