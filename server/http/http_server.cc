#include "server/http/http_server.h"

#include <spdlog/spdlog.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>

#include "absl/synchronization/notification.h"
#include "server/http/connection.h"
#include "server/http/connection_list.h"

namespace t6::server {

namespace net = boost::asio;
using tcp = net::ip::tcp;

struct HttpServer::State : std::enable_shared_from_this<State> {
  State(net::io_context& io, const HttpConfig& config, HttpApp* app)
      : io(io), config(config), app(app), acceptor(net::make_strand(io)), pause(acceptor.get_executor()) {}

  Status Listen();
  void Accept();
  void OnAccept(boost::system::error_code error, tcp::socket socket);
  void StopAccepting();

  net::io_context& io;
  const HttpConfig config;
  HttpApp* const app;
  tcp::acceptor acceptor;
  net::steady_timer pause;    // after an error of accept, such as no free descriptor
  absl::Notification closed;  // nobody new is let in
  const std::shared_ptr<ConnectionList> list = std::make_shared<ConnectionList>();
  int port = 0;
};

Status HttpServer::State::Listen() {
  boost::system::error_code error;
  const std::string host = config.address.host == "localhost" ? "127.0.0.1" : config.address.host;
  const auto ip = net::ip::make_address(host, error);
  if (error)
    return InvalidArgument("cannot listen for HTTP on {}: not a numeric address", config.address.ToString());
  const tcp::endpoint endpoint(ip, config.address.port);
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(net::socket_base::max_listen_connections, error);
  if (!error) port = acceptor.local_endpoint(error).port();
  if (error)
    return Unavailable("cannot listen for HTTP on {}: {}", config.address.ToString(), error.message());
  return absl::OkStatus();
}

void HttpServer::State::Accept() {
  acceptor.async_accept(net::make_strand(io),
                        [self = shared_from_this()](boost::system::error_code error, tcp::socket socket) {
                          self->OnAccept(error, std::move(socket));
                        });
}

void HttpServer::State::OnAccept(boost::system::error_code error, tcp::socket socket) {
  if (!acceptor.is_open()) return;
  if (error) {
    spdlog::warn("http: cannot accept a connection: {}", error.message());
    pause.expires_after(std::chrono::milliseconds(100));
    pause.async_wait([self = shared_from_this()](boost::system::error_code) {
      if (self->acceptor.is_open()) self->Accept();
    });
    return;
  }
  const int connected = list->size();
  // Beyond twice the bound not even an answer is affordable.
  if (connected < 2 * config.max_connections) {
    auto connection = std::make_shared<Connection>(std::move(socket), config, app, list);
    list->Add(connection);
    if (connected < config.max_connections) {
      connection->Start();
    } else {
      connection->Refuse(fmt::format("{} connections are open, which is the bound", connected));
    }
  }
  Accept();
}

void HttpServer::State::StopAccepting() {
  net::post(acceptor.get_executor(), [self = shared_from_this()] {
    if (!self->acceptor.is_open()) return;
    boost::system::error_code ignored;
    self->acceptor.close(ignored);
    self->pause.cancel();
    self->closed.Notify();
  });
}

HttpServer::HttpServer(std::shared_ptr<State> state) : state_(std::move(state)) {}

StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(net::io_context& io, const HttpConfig& config,
                                                        HttpApp* app) {
  auto state = std::make_shared<State>(io, config, app);
  T6_RETURN_IF_ERROR(state->Listen());
  net::post(state->acceptor.get_executor(), [state] { state->Accept(); });
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

HttpServer::~HttpServer() {
  Drain();
  for (const auto& connection : state_->list->All()) connection->CloseSoon(true);
}

int HttpServer::port() const { return state_->port; }
int HttpServer::connections() const { return state_->list->size(); }
int HttpServer::requests_in_flight() const { return state_->list->in_flight(); }

void HttpServer::Drain() {
  state_->list->SetDraining();
  state_->StopAccepting();
  for (const auto& connection : state_->list->All()) connection->CloseSoon(false);
}

bool HttpServer::Stop(absl::Time deadline) {
  Drain();
  state_->closed.WaitForNotification();
  const bool finished = state_->list->WaitUntilNoRequest(deadline);
  for (const auto& connection : state_->list->All()) connection->CloseSoon(true);
  state_->list->WaitUntilEmpty();
  return finished;
}

}  // namespace t6::server
