#include "clients/cli/bench/http_target.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>
#include <nlohmann/json.hpp>

#include "clients/cli/bench/http_exchange.h"

namespace t6::cli {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Json = nlohmann::ordered_json;
constexpr std::chrono::seconds kConnectTimeout(20), kCallTimeout(120);

class HttpTarget final : public Target {
 public:
  HttpTarget(net::io_context& io, HttpAddress address, const BenchRequestOptions& options)
      : address_(std::move(address)), options_(options), pool_{.io = io} {}

  std::string Describe() const override {
    return fmt::format("HTTP at {}:{}{}", address_.host, address_.port, address_.base);
  }

  std::string Connect(std::string& model) override {
    boost::system::error_code error;
    net::ip::tcp::resolver resolver(pool_.io);
    for (const auto& entry : resolver.resolve(address_.host, address_.port, error))
      pool_.endpoints.push_back(entry.endpoint());
    if (error) return fmt::format("no server answers at {}: {}", address_.host, error.message());
    if (model.empty()) {
      Json models;
      if (std::string message = Call("GET", "/v1/models", "", models); !message.empty()) return message;
      const auto id = Json::json_pointer("/data/0/id");
      if (!models.contains(id) || !models[id].is_string()) return "the server has no model";
      model = models[id].get<std::string>();
    }
    options_.model = model;
    return "";
  }

  std::string CountTokens(const std::string& text, int& tokens) override {
    Json counted;
    const std::string body = Json{{"model", options_.model}, {"prompt", text}}.dump();
    if (std::string error = Call("POST", "/tokenize", body, counted); !error.empty()) return error;
    if (!counted.contains("count") || !counted["count"].is_number_integer()) return "/tokenize gave no count";
    tokens = counted["count"].get<int>();
    return "";
  }

  void Send(const BenchPrompt& prompt, BenchClock::time_point due,
            std::function<void(Sample)> done) override {
    Sample sample;
    sample.due = due;
    sample.document = prompt.document;
    auto message = NewMessage("POST", "/v1/chat/completions", Body(prompt));
    if (options_.affinity) message.set("x-t6-context", prompt.context);
    std::make_shared<HttpExchange>(&pool_, std::move(message), std::move(sample), options_.timeout,
                                   std::move(done))
        ->Start();
  }

  void CancelAll() override {
    net::post(pool_.io, [this] {
      for (HttpExchange* exchange : pool_.running) exchange->Cancel();
    });
  }

 private:
  HttpExchange::Message NewMessage(const char* method, const std::string& path, std::string body) const {
    HttpExchange::Message message{http::string_to_verb(method), address_.base + path, 11};
    message.set(http::field::host, fmt::format("{}:{}", address_.host, address_.port));
    message.set(http::field::user_agent, "t6-bench");
    message.set(http::field::content_type, "application/json");
    if (!options_.api_key.empty()) message.set(http::field::authorization, "Bearer " + options_.api_key);
    message.body() = std::move(body);
    message.prepare_payload();
    return message;
  }

  std::string Body(const BenchPrompt& prompt) const {
    Json messages = Json::array();
    for (const BenchMessage& message : prompt.messages)
      messages.push_back({{"role", message.role}, {"content", *message.content}});
    Json body = {{"model", options_.model},
                 {"messages", std::move(messages)},
                 {"max_tokens", options_.max_tokens},
                 {"temperature", options_.temperature},
                 {"seed", options_.seed},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
    if (options_.ignore_eos) body["ignore_eos"] = true;
    return body.dump();
  }

  // Blocking, over a connection of its own.
  std::string Call(const char* method, const std::string& path, const std::string& body, Json& answer) {
    boost::system::error_code error;
    beast::tcp_stream stream(pool_.io);
    beast::flat_buffer buffer;
    http::response<http::string_body> response;
    const auto run = [&](std::chrono::seconds timeout, auto start) {
      stream.expires_after(timeout);
      start([&](boost::system::error_code ended, auto&&...) { error = ended; });
      pool_.io.restart();
      pool_.io.run();
      return !error;
    };
    if (!run(kConnectTimeout, [&](auto done) { stream.async_connect(pool_.endpoints, done); }))
      return fmt::format("no server answers at {}:{} (HTTP): {}", address_.host, address_.port,
                         error.message());
    const auto message = NewMessage(method, path, body);
    if (!run(kCallTimeout, [&](auto done) { http::async_write(stream, message, done); }) ||
        !run(kCallTimeout, [&](auto done) { http::async_read(stream, buffer, response, done); }))
      return fmt::format("{}: {}", path, error.message());
    answer = Json::parse(response.body(), nullptr, false);
    if (response.result_int() == 200) return answer.is_object() ? "" : path + ": the answer is not JSON";
    const auto text = Json::json_pointer("/error/message");
    return fmt::format("{}: HTTP {}: {}", path, response.result_int(),
                       answer.contains(text) && answer[text].is_string() ? answer[text].get<std::string>()
                                                                         : response.body().substr(0, 200));
  }

  const HttpAddress address_;
  BenchRequestOptions options_;
  HttpPool pool_;
};

}  // namespace

std::string ParseHttpAddress(const std::string& url, HttpAddress& address) {
  constexpr std::string_view kScheme = "http://";
  const auto wrong = [&] { return fmt::format("'{}' is not http://HOST:PORT", url); };
  if (url.starts_with("https://")) return fmt::format("'{}': only http:// is spoken here", url);
  std::string rest = url.starts_with(kScheme) ? url.substr(kScheme.size()) : url;
  const size_t slash = std::min(rest.find('/'), rest.size());
  address.base = rest.substr(slash);
  while (address.base.ends_with('/')) address.base.pop_back();
  rest.resize(slash);
  // [::1]:8000 has colons in its host.
  const size_t colon = rest.rfind(':');
  const bool has_port = colon != std::string::npos && rest.find(']', colon) == std::string::npos;
  address.host = rest.substr(0, has_port ? colon : rest.size());
  address.port = has_port ? rest.substr(colon + 1) : "80";
  if (address.host.starts_with('[') && address.host.ends_with(']'))
    address.host = address.host.substr(1, address.host.size() - 2);
  if (address.host.empty() || address.port.empty() || address.port.size() > 5 ||
      address.port.find_first_not_of("0123456789") != std::string::npos ||
      (address.host + address.base).find_first_of(" \r\n\t\"@?#") != std::string::npos)
    return wrong();
  return "";
}

std::unique_ptr<Target> MakeHttpTarget(net::io_context& io, const HttpAddress& address,
                                       const BenchRequestOptions& options) {
  return std::make_unique<HttpTarget>(io, address, options);
}

}  // namespace t6::cli
