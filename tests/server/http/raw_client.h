// A blocking HTTP client over a plain socket, so that tests can send what no library would.
// Every wait ends after kPatience.
#pragma once

#include <boost/beast/http/fields.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace t6::server {

struct RawResponse {
  int status = 0;
  boost::beast::http::fields headers;
  std::string body;
  std::string Header(std::string_view name) const { return std::string(headers[name]); }
};

class RawClient {
 public:
  // `small_buffers`: the kernel then keeps little of what this client does not read.
  explicit RawClient(int port, bool small_buffers = false, const char* host = "127.0.0.1");
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  // False when the server has closed.
  bool Send(std::string_view bytes);
  // The next response with its body, chunks joined. Nothing: the server closed first, or never answered.
  std::optional<RawResponse> Read(bool to_head = false);
  // Exactly what comes until `end` appears, or the server closes.
  std::string ReadUntil(std::string_view end);
  // True when nothing comes but the server's close.
  bool IsClosedByServer();
  void ShutdownSend();
  void Close();

 private:
  bool Receive();  // more into buffer_
  int fd_ = -1;
  std::string buffer_;
};

// A request with Host and Content-Length.
std::string Request(std::string_view method, std::string_view path, std::string_view body = "",
                    std::string_view more_headers = "");
// A POST of JSON.
std::string Post(std::string_view path, std::string_view json, std::string_view more_headers = "");

}  // namespace t6::server
