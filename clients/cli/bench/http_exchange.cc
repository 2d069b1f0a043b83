#include "clients/cli/bench/http_exchange.h"

#include <poll.h>

#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>
#include <nlohmann/json.hpp>

namespace t6::cli {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Json = nlohmann::json;

constexpr size_t kLargestRefusal = 64 << 10;

// Closed by the server while it lay idle, or with bytes nobody asked for.
bool IsStale(beast::tcp_stream& stream) {
  pollfd peer{stream.socket().native_handle(), POLLIN | POLLRDHUP, 0};
  return ::poll(&peer, 1, 0) != 0;
}

const Json* Member(const Json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto member = object.find(name);
  return member == object.end() ? nullptr : &*member;
}

int Int(const Json& object, const char* name) {
  const Json* member = Member(object, name);
  return member != nullptr && member->is_number_integer() ? member->get<int>() : 0;
}

std::string Text(const Json& object, const char* name) {
  const Json* member = Member(object, name);
  return member != nullptr && member->is_string() ? member->get<std::string>() : "";
}

std::string ErrorMessage(const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  const Json* error = Member(json, "error");
  return error != nullptr ? Text(*error, "message") : body.substr(0, 200);
}

}  // namespace

HttpExchange::HttpExchange(HttpPool* pool, Message message, Sample sample,
                           std::chrono::duration<double> timeout, std::function<void(Sample)> done)
    : pool_(pool),
      message_(std::move(message)),
      sample_(std::move(sample)),
      deadline_(BenchClock::now() + std::chrono::duration_cast<BenchClock::duration>(timeout)),
      done_(std::move(done)) {
  pool_->running.insert(this);
}

HttpExchange::~HttpExchange() { pool_->running.erase(this); }

void HttpExchange::Start() {
  net::post(pool_->io, [self = shared_from_this()] {
    if (self->TakeKept()) {
      self->Write();
    } else {
      self->Open();
    }
  });
}

void HttpExchange::Cancel() {
  cancelled_ = true;
  if (stream_) stream_->cancel();
}

bool HttpExchange::TakeKept() {
  while (!pool_->kept.empty()) {
    stream_.emplace(std::move(pool_->kept.back()));
    pool_->kept.pop_back();
    if (!IsStale(*stream_)) return from_pool_ = true;
  }
  return false;
}

void HttpExchange::Open() {
  from_pool_ = false;
  if (cancelled_) return OnFailure(net::error::operation_aborted);
  stream_.emplace(pool_->io);
  stream_->expires_at(deadline_);
  stream_->async_connect(pool_->endpoints, [self = shared_from_this()](ErrorCode error, const auto&) {
    if (error) return self->OnFailure(error);
    ErrorCode ignored;
    self->stream_->socket().set_option(net::ip::tcp::no_delay(true), ignored);
    self->Write();
  });
}

void HttpExchange::Write() {
  if (cancelled_) return OnFailure(net::error::operation_aborted);
  buffer_.clear();
  parser_.emplace();
  parser_->body_limit(boost::none);
  stream_->expires_at(deadline_);
  http::async_write(*stream_, message_, [self = shared_from_this()](ErrorCode error, size_t) {
    // The server may answer and close without reading all: what it says is worth more than the broken pipe.
    if (error == beast::error::timeout || self->cancelled_) return self->OnFailure(error);
    http::async_read_header(*self->stream_, self->buffer_, *self->parser_, [self](ErrorCode error, size_t) {
      if (error) return self->OnFailure(error);
      self->OnHeader();
    });
  });
}

void HttpExchange::OnFailure(ErrorCode error) {
  const bool nothing_came = !parser_ || (!parser_->got_some() && buffer_.size() == 0);
  if (from_pool_ && nothing_came && !cancelled_ && error != beast::error::timeout) return Open();
  if (cancelled_) {
    sample_.error = "CANCELLED";
  } else if (error == beast::error::timeout) {
    sample_.error = "timeout";
  } else if (error == net::error::connection_refused) {
    sample_.error = "connection refused";
  } else {
    sample_.error = "connection lost";
  }
  sample_.message = error.message();
  parser_.reset();  // the connection is of no more use
  Finish();
}

void HttpExchange::OnHeader() {
  const auto& header = parser_->get();
  const auto replica = header["x-t6-replica"];
  sample_.replica.assign(replica.data(), replica.size());
  ReadBody();
}

void HttpExchange::ReadBody() {
  if (parser_->is_done()) return Finish();
  auto& body = parser_->get().body();
  body.data = piece_.data();
  body.size = piece_.size();
  http::async_read_some(*stream_, buffer_, *parser_,
                        [self = shared_from_this()](ErrorCode error, size_t) { self->OnBody(error); });
}

void HttpExchange::OnBody(ErrorCode error) {
  if (error == http::error::need_buffer) error = {};
  const std::string_view bytes(piece_.data(), piece_.size() - parser_->get().body().size);
  const bool refused = parser_->get().result_int() != 200;
  if (refused) {
    refusal_ += bytes.substr(0, kLargestRefusal - std::min(kLargestRefusal, refusal_.size()));
  } else if (!events_.Feed(bytes, [this](std::string_view data) { OnEvent(data); })) {
    error = http::error::body_limit;
  }
  // A refusal is one however much of its text has come.
  if (error && refused && !cancelled_ && error != beast::error::timeout) return Finish();
  if (error) return OnFailure(error);
  ReadBody();
}

void HttpExchange::OnEvent(std::string_view data) {
  if (data == "[DONE]") {
    complete_ = true;
    return;
  }
  const Json chunk = Json::parse(data, nullptr, false);
  if (const Json* error = Member(chunk, "error"); error != nullptr) {
    sample_.error = Text(*error, "type");
    if (sample_.error.empty()) sample_.error = "error";
    sample_.message = Text(*error, "message");
    return;
  }
  if (const Json* usage = Member(chunk, "usage"); usage != nullptr && usage->is_object()) {
    sample_.prompt_tokens = Int(*usage, "prompt_tokens");
    sample_.completion_tokens = Int(*usage, "completion_tokens");
    if (const Json* details = Member(*usage, "prompt_tokens_details"))
      sample_.cached_tokens = Int(*details, "cached_tokens");
  }
  const Json* choices = Member(chunk, "choices");
  if (choices == nullptr || !choices->is_array() || choices->empty()) return;
  const Json* delta = Member((*choices)[0], "delta");
  if (delta != nullptr && !Text(*delta, "content").empty()) sample_.OnText(BenchClock::now());
}

void HttpExchange::Finish() {
  sample_.end = BenchClock::now();
  if (parser_) {
    if (const unsigned status = parser_->get().result_int(); status != 200) {
      sample_.error = std::to_string(status);
      sample_.message = ErrorMessage(refusal_);
    } else if (sample_.error.empty() && !complete_) {
      sample_.error = "incomplete";
      sample_.message = "the stream ended without [DONE]";
    }
    if (parser_->is_done() && parser_->keep_alive() && buffer_.size() == 0) {
      stream_->expires_never();
      pool_->kept.push_back(std::move(*stream_));
    }
  }
  stream_.reset();
  const auto done = std::move(done_);
  done(std::move(sample_));
}

}  // namespace t6::cli
