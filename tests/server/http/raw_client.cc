#include "tests/server/http/raw_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cerrno>

#include "engine/base/check.h"
#include "tests/support/patience.h"

namespace t6::server {

namespace http = boost::beast::http;

namespace {

// Calls of a socket that has a time limit end when the process is stopped and goes on, without any handler.
template <typename Call>
ssize_t Uninterrupted(const Call& call) {
  ssize_t n = call();
  while (n < 0 && errno == EINTR) n = call();
  return n;
}

}  // namespace

RawClient::RawClient(int port, bool small_buffers, const char* host) {
  fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
  T6_CHECK(fd_ >= 0);
  const timeval limit = absl::ToTimeval(kPatience);
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  if (small_buffers) {
    const int bytes = 4096;
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  T6_CHECK(::inet_pton(AF_INET, host, &address.sin_addr) == 1);
  if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) Close();
}

RawClient::~RawClient() { Close(); }

void RawClient::Close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void RawClient::ShutdownSend() { ::shutdown(fd_, SHUT_WR); }

bool RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = Uninterrupted([&] { return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); });
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

bool RawClient::Receive() {
  char chunk[65536];
  const ssize_t n = Uninterrupted([&] { return ::recv(fd_, chunk, sizeof(chunk), 0); });
  if (n <= 0) return false;
  buffer_.append(chunk, static_cast<size_t>(n));
  return true;
}

std::optional<RawResponse> RawClient::Read(bool to_head) {
  http::response_parser<http::string_body> parser;
  parser.body_limit(size_t{1} << 30);
  if (to_head) parser.skip(true);
  while (!parser.is_done()) {
    boost::system::error_code error;
    const size_t used = parser.put(boost::asio::buffer(buffer_), error);
    buffer_.erase(0, used);
    if (error && error != http::error::need_more) return std::nullopt;
    if (parser.is_done() || (used > 0 && !buffer_.empty())) continue;
    if (Receive()) continue;
    if (!parser.got_some()) return std::nullopt;
    parser.put_eof(error);
    if (error || !parser.is_done()) return std::nullopt;
  }
  auto message = parser.release();
  RawResponse response;
  response.status = static_cast<int>(message.result_int());
  response.body = std::move(message.body());
  response.headers = std::move(static_cast<http::fields&>(message.base()));
  return response;
}

std::string RawClient::ReadUntil(std::string_view end) {
  while (buffer_.find(end) == std::string::npos && Receive()) {
  }
  const size_t at = buffer_.find(end);
  const size_t size = at == std::string::npos ? buffer_.size() : at + end.size();
  std::string taken = buffer_.substr(0, size);
  buffer_.erase(0, size);
  return taken;
}

bool RawClient::IsClosedByServer() {
  if (!buffer_.empty()) return false;
  char byte;
  return Uninterrupted([&] { return ::recv(fd_, &byte, 1, 0); }) == 0;
}

std::string Request(std::string_view method, std::string_view path, std::string_view body,
                    std::string_view more_headers) {
  return fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{}\r\n{}", method, path,
                     body.size(), more_headers, body);
}

std::string Post(std::string_view path, std::string_view json, std::string_view more_headers) {
  return Request("POST", path, json, fmt::format("Content-Type: application/json\r\n{}", more_headers));
}

}  // namespace t6::server
