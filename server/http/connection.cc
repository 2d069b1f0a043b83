#include "server/http/connection.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/buffers_to_string.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/rfc7230.hpp>
#include <boost/beast/http/serializer.hpp>
#include <utility>

#include "absl/time/clock.h"
#include "server/http/url.h"
#include "server/request_id.h"

namespace t6::server {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = net::ip::tcp;

// Beyond it nothing more is read while an answer is being made.
constexpr size_t kReadAhead = size_t{64} << 10;
// Large bodies received or waiting for their handler at once, over all connections.
constexpr size_t kLargeBodies = 64;
constexpr absl::Duration kHangUpPoll = absl::Seconds(1);

std::string HttpDate() {
  return absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone());
}

}  // namespace

Connection::Connection(tcp::socket socket, const HttpConfig& config, HttpApp* app,
                       std::shared_ptr<ConnectionList> list)
    : socket_(std::move(socket)),
      config_(config),
      app_(app),
      list_(std::move(list)),
      timer_(socket_.get_executor()),
      write_timer_(socket_.get_executor()) {
  ErrorCode ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
}

Connection::~Connection() {
  Close();
  list_->Remove(this);
}

void Connection::Start() {
  net::dispatch(socket_.get_executor(), [self = shared_from_this()] { self->Feed(); });
}

void Connection::Refuse(std::string message) {
  net::dispatch(socket_.get_executor(),
                [self = shared_from_this(), message = std::move(message)] { self->Reject(503, message); });
}

void Connection::CloseSoon(bool even_if_answering) {
  net::post(socket_.get_executor(), [self = shared_from_this(), even_if_answering] {
    self->keep_alive_ = false;
    if (even_if_answering || self->state_ == State::kIdle) self->Close();
  });
}

// ---- reading

void Connection::Read() {
  if (reading_ || state_ == State::kClosed) return;
  if (peer_ended_) {
    if (state_ != State::kAnswering) Close();
    return;
  }
  reading_ = true;
  socket_.async_read_some(net::buffer(chunk_),
                          [self = shared_from_this()](ErrorCode error, size_t n) { self->OnRead(error, n); });
}

void Connection::OnRead(ErrorCode error, size_t n) {
  reading_ = false;
  if (state_ == State::kClosed) return;
  if (error) {
    peer_ended_ = true;
    // A client may shut its side once it has asked; but one that is still waited for by the application, or
    // that half an answer went to, has gone: closing drops the work.
    const bool whole_answer_on_its_way = state_ == State::kAnswering && replied_ && stream_ == nullptr;
    if (!whole_answer_on_its_way || error != net::error::eof) Close();
    return;
  }
  if (state_ == State::kLingering) return LingerOn();
  in_.commit(net::buffer_copy(in_.prepare(n), net::buffer(chunk_, n)));
  if (state_ != State::kAnswering) return Feed();
  if (in_.size() < kReadAhead) {
    Read();
  } else {
    WatchForHangUp();
  }
}

void Connection::Feed() {
  while (state_ == State::kIdle || state_ == State::kReading) {
    if (in_.size() == 0) {
      if (state_ == State::kIdle) {
        if (list_->draining()) return Close();
        ArmTimer(config_.idle_timeout);
      } else if (wants_continue_) {
        return AskForBody();
      }
      return Read();
    }
    if (state_ == State::kIdle) {
      state_ = State::kReading;
      parser_.emplace();
      parser_->body_limit(config_.max_body_bytes);
      parser_->header_limit(static_cast<uint32_t>(config_.max_header_bytes));
      header_seen_ = wants_continue_ = replied_ = false;
      request_id_.clear();
      ArmTimer(config_.read_timeout);
    }
    ErrorCode error;
    const size_t used = parser_->put(in_.data(), error);
    in_.consume(used);
    if (error == http::error::need_more) {
      if (used > 0) continue;
      // Only a line of a chunked body's framing can be this long without an error of the parser.
      if (in_.size() > config_.max_header_bytes + sizeof(chunk_))
        return Reject(431, "a chunk's header is too long");
      return Read();
    }
    if (error) return RejectUnparsable(error);
    if (parser_->is_header_done() && !header_seen_ && !OnHeader()) return;
    if (in_.size() > 0) wants_continue_ = false;
    if (parser_->is_done()) return Dispatch();
  }
}

// False: the request was refused.
bool Connection::OnHeader() {
  header_seen_ = true;
  const auto& header = parser_->get();
  version_ = header.version();
  request_id_ = RequestIdFrom({header["x-request-id"].data(), header["x-request-id"].size()});
  const auto refuse = [this](int status, std::string_view message) {
    Reject(status, message);
    return false;
  };
  if (version_ != 10 && version_ != 11) {
    return refuse(505, fmt::format("HTTP version {}.{} is not supported", version_ / 10, version_ % 10));
  }
  if (version_ == 11 && header.count(http::field::host) != 1)
    return refuse(400, "exactly one Host header is needed");
  // Whose length we cannot tell from the next request's start.
  if (header.count(http::field::transfer_encoding) != 0 && !parser_->chunked()) {
    return refuse(501, "only the transfer encoding \"chunked\" is supported");
  }
  if (const auto expect = header[http::field::expect]; !expect.empty() && version_ == 11) {
    if (!beast::iequals(expect, "100-continue"))
      return refuse(417, "only \"Expect: 100-continue\" is supported");
    wants_continue_ = !parser_->is_done();
  }
  if (!ReserveBody()) return refuse(503, "too many large requests are being received; try again");
  return true;
}

// Or a few thousand clients that send slowly would hold a body of the largest size each.
bool Connection::ReserveBody() {
  const auto length = parser_->content_length();
  const size_t bytes = parser_->chunked() ? config_.max_body_bytes : static_cast<size_t>(length.value_or(0));
  reserved_ = list_->ReserveBody(bytes, kLargeBodies * config_.max_body_bytes);
  return reserved_ != nullptr;
}

void Connection::AskForBody() {
  wants_continue_ = false;
  static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  net::async_write(socket_, net::buffer(kContinue), [self = shared_from_this()](ErrorCode error, size_t) {
    if (error) return self->Close();
    self->Read();
  });
}

void Connection::RejectUnparsable(ErrorCode error) {
  if (error == http::error::body_limit) {
    return Reject(413, fmt::format("the request's body is larger than {} bytes", config_.max_body_bytes));
  }
  if (error == http::error::header_limit) {
    return Reject(431,
                  fmt::format("the request's headers are larger than {} bytes", config_.max_header_bytes));
  }
  Reject(400, fmt::format("malformed HTTP request: {}", error.message()));
}

// What cannot be read to its end is answered, and the connection closed.
void Connection::Reject(int status, std::string_view message) {
  if (state_ == State::kClosed || state_ == State::kAnswering) return;
  if (request_id_.empty()) request_id_ = RequestIdFrom({});
  state_ = State::kAnswering;
  list_->RequestBegins();
  DisarmTimer();
  keep_alive_ = is_head_ = false;
  parser_.reset();
  reserved_.reset();
  HttpReply reply = app_->Error(status, message);
  reply.close = true;
  Answer(std::move(reply));
}

void Connection::Dispatch() {
  state_ = State::kAnswering;
  list_->RequestBegins();
  DisarmTimer();
  auto message = parser_->release();
  keep_alive_ = message.keep_alive() && !list_->draining();
  is_head_ = message.method() == http::verb::head;

  HttpRequest request;
  request.method = std::string(message.method_string());
  auto path = PathOfTarget({message.target().data(), message.target().size()});
  request.body = std::move(message.body());
  request.headers = std::move(static_cast<http::fields&>(message.base()));
  request.body_bytes = std::move(reserved_);
  request.request_id = request_id_;
  request.executor = socket_.get_executor();
  Read();  // from here on for the client's leaving
  if (!path.has_value()) return Answer(app_->Error(400, "the request's target is not a valid path"));
  request.path = std::move(*path);

  std::shared_ptr<void> work = app_->Handle(std::move(request), [weak = weak_from_this()](HttpReply reply) {
    if (const auto self = weak.lock()) self->Answer(std::move(reply));
  });
  if (replied_ || state_ != State::kAnswering) return;
  if (peer_ended_) return Close();
  pending_ = std::move(work);
}

// ---- answering

std::string Connection::Head(const HttpReply& reply) const {
  http::response<http::empty_body> head{static_cast<http::status>(reply.status), version_};
  head.set(http::field::server, "t6d");
  head.set(http::field::date, HttpDate());
  head.set("x-request-id", request_id_);
  if (!reply.content_type.empty()) head.set(http::field::content_type, reply.content_type);
  for (const auto& [name, value] : reply.headers) head.set(name, value);
  if (reply.status == 304) {
    // Has no body; a length would be that of what the client has already.
  } else if (reply.stream == nullptr) {
    head.content_length(reply.body.size());
  } else if (version_ == 11) {
    head.chunked(true);
  }
  head.keep_alive(keep_alive_);
  http::response_serializer<http::empty_body> serializer{head};
  serializer.split(true);
  std::string text;
  ErrorCode error;
  serializer.next(error, [&](ErrorCode&, const auto& buffers) { text = beast::buffers_to_string(buffers); });
  return text;
}

void Connection::Answer(HttpReply reply) {
  if (state_ != State::kAnswering || replied_) return;
  replied_ = true;
  const auto work_is_done = std::move(pending_);
  stream_ = reply.stream;
  // A body without length needs chunks or the connection's end.
  if (reply.close || (stream_ != nullptr && version_ != 11) || list_->draining()) keep_alive_ = false;
  out_ = Head(reply);
  if (stream_ != nullptr) {
    AppendPiece(reply.body, false);
  } else if (!is_head_) {
    out_ += reply.body;
  }
  out_written_ = 0;
  Write();
}

void Connection::AppendPiece(std::string_view data, bool last) {
  const bool chunked = version_ == 11;
  if (!data.empty()) {
    if (chunked) out_ += fmt::format("{:x}\r\n", data.size());
    out_ += data;
    if (chunked) out_ += "\r\n";
  }
  if (last && chunked) out_ += "0\r\n\r\n";
}

void Connection::Write() {
  if (out_written_ == out_.size()) return OnWritten();
  write_timer_.expires_after(absl::ToChronoMilliseconds(config_.write_timeout));
  write_timer_.async_wait([weak = weak_from_this()](ErrorCode error) {
    // An expiry that was overtaken by another write still arrives, hence the second look at the clock.
    const auto self = error ? nullptr : weak.lock();
    if (self != nullptr && self->write_timer_.expiry() <= std::chrono::steady_clock::now()) self->Close();
  });
  socket_.async_write_some(net::buffer(out_) + out_written_,
                           [self = shared_from_this()](ErrorCode error, size_t n) {
                             self->write_timer_.expires_at(std::chrono::steady_clock::time_point::max());
                             if (self->state_ == State::kClosed) return;
                             if (error) return self->Close();
                             self->out_written_ += n;
                             self->Write();
                           });
}

void Connection::OnWritten() {
  if (stream_ != nullptr) return Pull();
  EndRequest();
}

void Connection::Pull() {
  stream_->Next([weak = weak_from_this()](BodyStream::Piece piece) {
    const auto self = weak.lock();
    if (self != nullptr && self->state_ == State::kAnswering) self->OnPiece(std::move(piece));
  });
}

void Connection::OnPiece(BodyStream::Piece piece) {
  out_.clear();
  out_written_ = 0;
  AppendPiece(piece.data, piece.last);
  if (piece.last) {
    stream_.reset();
    if (piece.close) keep_alive_ = false;
  }
  Write();
}

void Connection::EndRequest() {
  parser_.reset();
  out_ = std::string();
  DisarmTimer();
  state_ = keep_alive_ && !list_->draining() ? State::kIdle : State::kLingering;
  list_->RequestEnds();
  if (state_ == State::kIdle) return Feed();
  Linger();
}

// ---- ending

void Connection::Linger() {
  if (peer_ended_) return Close();
  ErrorCode ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  linger_until_ = absl::Now() + config_.read_timeout;
  LingerOn();
}

// As long as bytes come, and no longer than a whole request may take: a client that is cut off in the middle
// of a large body that was refused would see a reset instead of the answer.
void Connection::LingerOn() {
  const absl::Duration left = linger_until_ - absl::Now();
  if (left <= absl::ZeroDuration()) return Close();
  ArmTimer(std::min(config_.linger_timeout, left));
  Read();
}

// With the read-ahead full no read is pending that would notice the client's leaving; the kernel is asked
// instead, which knows once all that the client sent has arrived.
void Connection::WatchForHangUp() { ArmTimer(kHangUpPoll); }

void Connection::ArmTimer(absl::Duration after) {
  timer_.expires_after(absl::ToChronoMilliseconds(after));
  timer_.async_wait([self = shared_from_this()](ErrorCode error) {
    if (!error && self->timer_.expiry() <= std::chrono::steady_clock::now()) self->OnTimer();
  });
}

// Unlike cancel() also for a wait that has ended and whose handler is queued: it looks at the expiry.
void Connection::DisarmTimer() { timer_.expires_at(std::chrono::steady_clock::time_point::max()); }

void Connection::OnTimer() {
  switch (state_) {
    case State::kReading:
      return Reject(408, fmt::format("the request did not arrive within {}",
                                     absl::FormatDuration(config_.read_timeout)));
    case State::kAnswering: {
      pollfd peer{socket_.native_handle(), POLLRDHUP, 0};
      if (::poll(&peer, 1, 0) > 0) return Close();
      return WatchForHangUp();
    }
    case State::kIdle:
    case State::kLingering:
      return Close();
    case State::kClosed:
      return;
  }
}

void Connection::Close() {
  if (state_ == State::kClosed) return;
  const bool was_answering = std::exchange(state_, State::kClosed) == State::kAnswering;
  ErrorCode ignored;
  socket_.close(ignored);
  timer_.cancel();
  write_timer_.cancel();
  // Moved out first: dropping the work may call back. Until then the request is in flight.
  std::exchange(pending_, nullptr).reset();
  std::exchange(stream_, nullptr).reset();
  if (was_answering) list_->RequestEnds();
}

}  // namespace t6::server
