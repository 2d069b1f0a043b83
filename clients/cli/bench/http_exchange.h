// One streamed request over HTTP: connect unless a kept connection is given, write, read events until [DONE].
// Lives by its pending operations; everything runs on the one thread of the io_context. A kept connection
// that the server closed before a byte of the answer came is replaced by a new one, once, as browsers do.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "clients/cli/bench/sse_reader.h"
#include "clients/cli/bench/target.h"

namespace t6::cli {

class HttpExchange;

// What the exchanges of one target share. Outlives them.
struct HttpPool {
  boost::asio::io_context& io;
  std::vector<boost::asio::ip::tcp::endpoint> endpoints = {};
  std::vector<boost::beast::tcp_stream> kept = {};  // idle connections
  std::unordered_set<HttpExchange*> running = {};
};

class HttpExchange : public std::enable_shared_from_this<HttpExchange> {
 public:
  using Message = boost::beast::http::request<boost::beast::http::string_body>;

  HttpExchange(HttpPool* pool, Message message, Sample sample, std::chrono::duration<double> timeout,
               std::function<void(Sample)> done);
  ~HttpExchange();
  void Start();
  void Cancel();

 private:
  using ErrorCode = boost::system::error_code;
  bool TakeKept();
  void Open();
  void Write();
  void OnFailure(ErrorCode error);
  void OnHeader();
  void ReadBody();
  void OnBody(ErrorCode error);
  void OnEvent(std::string_view data);
  void Finish();

  HttpPool* const pool_;
  const Message message_;
  Sample sample_;
  const BenchClock::time_point deadline_;
  std::function<void(Sample)> done_;
  std::optional<boost::beast::tcp_stream> stream_;
  bool from_pool_ = false, cancelled_ = false;
  boost::beast::flat_buffer buffer_;
  std::optional<boost::beast::http::response_parser<boost::beast::http::buffer_body>> parser_;
  std::array<char, 16384> piece_;
  SseReader events_;
  std::string refusal_;  // the body of an answer that is no stream
  bool complete_ = false;
};

}  // namespace t6::cli
