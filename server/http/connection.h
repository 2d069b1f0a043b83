// One client connection: reads requests one after the other (HTTP/1.1 keep-alive and pipelining), hands each
// to the application, writes its answer. One read is pending at nearly all times, so that a client who leaves
// while the application works is noticed and its work dropped; what arrives early waits in a bounded buffer.
// Lives by its pending operations (shared_from_this); everything runs on its strand.
#pragma once

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <optional>
#include <string>

#include "server/config.h"
#include "server/http/connection_list.h"
#include "server/http/http_types.h"

namespace t6::server {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // `socket`'s executor is a strand of this connection's own.
  Connection(boost::asio::ip::tcp::socket socket, const HttpConfig& config, HttpApp* app,
             std::shared_ptr<ConnectionList> list);
  ~Connection();

  // These three may be called from any thread.
  void Start();
  void Refuse(std::string message);  // 503 and close, without reading
  void CloseSoon(
      bool even_if_answering);  // at once when idle; the answer that is being made is finished, or cut

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using ErrorCode = boost::system::error_code;
  enum class State {
    kIdle,       // between requests
    kReading,    // somewhere in a request
    kAnswering,  // from its last byte to the answer's last
    kLingering,  // answered and shut; reads on so that the client gets the answer instead of a reset
    kClosed
  };

  void Read();
  void OnRead(ErrorCode error, size_t n);
  void Feed();
  bool OnHeader();
  bool ReserveBody();
  void AskForBody();
  void Dispatch();
  void Reject(int status, std::string_view message);
  void RejectUnparsable(ErrorCode error);
  void Answer(HttpReply reply);
  std::string Head(const HttpReply& reply) const;
  void Write();
  void OnWritten();
  void Pull();
  void OnPiece(BodyStream::Piece piece);
  void AppendPiece(std::string_view data, bool last);
  void EndRequest();
  void Linger();
  void LingerOn();
  void WatchForHangUp();
  void ArmTimer(absl::Duration after);
  void DisarmTimer();
  void OnTimer();
  void Close();

  boost::asio::ip::tcp::socket socket_;
  const HttpConfig config_;
  HttpApp* const app_;
  const std::shared_ptr<ConnectionList> list_;
  boost::asio::steady_timer timer_, write_timer_;
  absl::Time linger_until_;

  State state_ = State::kIdle;
  bool reading_ = false;     // an async_read_some is pending
  bool peer_ended_ = false;  // the client sends no more
  std::array<char, 16384>
      chunk_;  // the pending read's target; apart from in_, which may be consumed meanwhile
  boost::beast::flat_buffer in_;  // bytes not yet parsed

  // Of the current request:
  std::optional<Parser> parser_;
  std::shared_ptr<void> reserved_;  // of the list's bytes for bodies
  bool header_seen_ = false, wants_continue_ = false;
  unsigned version_ = 11;
  bool keep_alive_ = true, is_head_ = false;
  std::string request_id_;
  std::shared_ptr<void> pending_;  // the application's work, until it replies
  bool replied_ = false;
  std::shared_ptr<BodyStream> stream_;  // pieces still to come
  std::string out_;
  size_t out_written_ = 0;
};

}  // namespace t6::server
