// t6d: flags in, exit status out. 0 after a drain, 1 when the server cannot start or fails, 2 for wrong
// usage.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "server/config.h"
#include "server/daemon.h"
#include "server/log.h"

namespace t6::server {
namespace {

constexpr int kFailure = 1;
constexpr int kUsage = 2;

int Fail(const Status& status, int code) {
  fmt::print(stderr, "t6d: {}\n", MessageOf(status));
  return code;
}

// Turns SIGTERM and SIGINT into RequestStop, and SIGHUP into ReloadKeys, on a thread of its own. Ctrl-C means
// nobody balances: no grace. A SIGHUP with no keys to read (a terminal that closed) is logged and nothing
// else.
class SignalWatch {
 public:
  explicit SignalWatch(Daemon* daemon) : daemon_(daemon), signals_(io_, SIGTERM, SIGINT, SIGHUP) {
    Listen();
    thread_ = std::thread([this] { io_.run(); });
  }
  ~SignalWatch() {
    io_.stop();
    thread_.join();
  }

 private:
  void Listen() {
    signals_.async_wait([this](const boost::system::error_code& error, int signal) {
      if (error) return;
      if (signal == SIGHUP) {
        ReloadKeys();
      } else {
        // Nothing is in flight yet, and loading cannot be interrupted.
        if (daemon_->state() == ServingState::kStarting) std::_Exit(EXIT_SUCCESS);
        daemon_->RequestStop(/*skip_grace=*/signal == SIGINT);
      }
      Listen();
    });
  }

  void ReloadKeys() {
    const Status reloaded = daemon_->ReloadKeys();
    if (absl::IsFailedPrecondition(reloaded)) {
      spdlog::info("SIGHUP: {}", MessageOf(reloaded));
    } else if (!reloaded.ok()) {
      spdlog::error("SIGHUP: {}; the keys stay as they were", MessageOf(reloaded));
    }
  }

  Daemon* const daemon_;
  boost::asio::io_context io_;
  boost::asio::signal_set signals_;
  std::thread thread_;
};

int PrintPlan(const ServerConfig& config) {
  const auto info = Engine::Plan(config.engine);
  if (!info.ok()) return Fail(info.status(), kFailure);
  const MemoryPlan& memory = info->memory;
  const auto mib = [](size_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  fmt::print("model       {} ({}, {:.1f} M parameters)\n", config.served_model_name, info->variant,
             static_cast<double>(info->n_parameters) / 1e6);
  fmt::print("device      {}\n", info->device);
  if (!info->slow_attention.empty())
    fmt::print("slow        no kernel of its own for {}\n", info->slow_attention);
  fmt::print("types       {} weights and products, {} factors\n", info->dtype, info->cache_dtype);
  fmt::print("context     {} tokens\n", info->max_context);
  fmt::print("weights     {:10.1f} MiB\n", mib(memory.weight_bytes));
  fmt::print("workspace   {:10.1f} MiB\n", mib(memory.workspace_bytes));
  fmt::print("cache       {:10.1f} MiB: {} pages of {} bytes, {} tokens\n", mib(memory.cache_bytes),
             memory.n_pages, memory.page_bytes, memory.cache_tokens());
  fmt::print("available   {:10.1f} MiB\n", mib(memory.available_bytes));
  return EXIT_SUCCESS;
}

int Serve(const ServerConfig& config) {
  Daemon daemon(config, [](const EngineConfig& engine, EngineMetrics* metrics) {
    return Engine::Create(engine, metrics);
  });
  SignalWatch signals(&daemon);
  if (Status started = daemon.Start(); !started.ok()) return Fail(started, kFailure);
  if (Status ended = daemon.Wait(); !ended.ok()) return Fail(ended, kFailure);
  return EXIT_SUCCESS;
}

int Main(const std::vector<std::string>& args) {
  const auto config = ParseConfig(args);
  if (!config.ok()) return Fail(config.status(), kUsage);
  if (config->action == Action::kHelp) {
    fmt::print("{}", HelpText());
    return EXIT_SUCCESS;
  }
  if (config->action == Action::kVersion) {
    fmt::print("{}\n", VersionText());
    return EXIT_SUCCESS;
  }
  InitLogging(config->log_level, config->log_format);
  std::signal(SIGPIPE, SIG_IGN);
  return config->action == Action::kPlan ? PrintPlan(*config) : Serve(*config);
}

}  // namespace
}  // namespace t6::server

int main(int argc, char** argv) {
  try {
    const int code = t6::server::Main(std::vector<std::string>(argv + 1, argv + argc));
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
    fmt::print(stderr, "t6d: cannot write to standard output: {}\n", std::strerror(errno));
    return 1;
  } catch (const std::exception& error) {
    // What a library throws in spite of all: out of memory, no more threads, a full disk.
    fmt::print(stderr, "t6d: {}\n", error.what());
    return 1;
  }
}
