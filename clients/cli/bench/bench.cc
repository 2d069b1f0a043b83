// t6 bench.
#include <fmt/format.h>
#include <pthread.h>

#include <boost/asio/io_context.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "clients/cli/bench/bench_options.h"
#include "clients/cli/bench/grpc_target.h"
#include "clients/cli/bench/http_target.h"
#include "clients/cli/bench/load.h"
#include "clients/cli/bench/plot.h"
#include "clients/cli/bench/progress.h"
#include "clients/cli/bench/prompt_files.h"
#include "clients/cli/bench/report.h"
#include "clients/cli/bench/statistics.h"
#include "clients/cli/bench/synthetic.h"
#include "clients/cli/commands.h"
#include "clients/cli/interrupt.h"
#include "clients/cli/options.h"
#include "clients/cli/text.h"

namespace t6::cli {
namespace {

ExitCode Fail(ExitCode code, const std::string& message) {
  fmt::print(stderr, "t6: {}\n", message);
  return code;
}

BenchRequestOptions RequestOptions(const BenchOptions& options) {
  return {.model = options.model,
          .max_tokens = options.max_tokens,
          .temperature = options.temperature,
          .ignore_eos = options.ignore_eos,
          .seed = options.seed,
          .affinity = options.affinity,
          .api_key = options.api_key,
          .timeout = std::chrono::duration<double>(options.timeout)};
}

// Prompts from the file, or made up; with --document-tokens the server's tokenizer says how many words that
// is.
std::string MakePrompts(const BenchOptions& options, Target& target, std::vector<BenchPrompt>& prompts,
                        std::string& description) {
  const std::string instruction = options.system.value_or(kDefaultSystem);
  if (!options.prompts.empty()) {
    description = fmt::format("prompts of {}", options.prompts);
    return ReadPrompts(options.prompts, instruction, prompts);
  }
  int words = options.document_words;
  if (options.document_tokens) {
    constexpr int kSampleWords = 2000;
    int tokens = 0;
    const std::string sample = MakeDocument(options.seed, -1, kSampleWords, 0).text;
    if (std::string error = target.CountTokens(sample, tokens); !error.empty()) return error;
    words =
        std::max(8, static_cast<int>(int64_t{*options.document_tokens} * kSampleWords / std::max(tokens, 1)));
  }
  for (int i = 0; i < options.documents; ++i) {
    const SyntheticDocument made = MakeDocument(options.seed, i, words, options.questions);
    const DocumentPrompts about(instruction, made.text, i);
    for (const std::string& question : made.questions) prompts.push_back(about.Ask(question));
  }
  description = fmt::format("{} questions about each of {} documents of {} words", options.questions,
                            options.documents, words);
  return "";
}

LoadPlan PlanOf(const BenchOptions& options) {
  return {.concurrency = options.concurrency,
          .rate = options.rate,
          .max_in_flight = options.max_in_flight,
          .requests = *options.requests,
          .duration = options.duration,
          .seed = options.seed};
}

// Runs one load to its end. True when ctrl-C stopped it.
bool RunLoad(boost::asio::io_context& io, Target& target, Workload& workload, const LoadPlan& plan,
             const std::string& what, bool quiet, Collector& collector, Figures& figures,
             BenchClock::time_point& started) {
  BenchProgress progress(what, plan.requests, plan.duration, quiet);
  Load* running = nullptr;
  Load load(io, target, workload, plan, [&](Sample sample) {
    collector.Add(std::move(sample));
    if (progress.IsDue())
      progress.Show({.done = static_cast<int64_t>(collector.samples().size()),
                     .failed = collector.failed(),
                     .in_flight = running->in_flight(),
                     .first_token_p50 = collector.first_tokens().Quantile(0.5)});
  });
  running = &load;
  Interruptible interruptible([&load] { load.Stop(); });
  load.Run();
  started = load.started();
  figures = collector.Make(started, load.not_sent());
  return TakeInterrupted();
}

std::string WriteFile(const std::string& path, const std::string& text) {
  if (path == "-") {
    fmt::print("{}", text);
    return "";
  }
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  return file ? "" : fmt::format("cannot write '{}': {}", path, std::strerror(errno));
}

std::string WriteReports(const BenchOptions& options, const BenchRun& run, const Figures& figures,
                         const Collector& collector, BenchClock::time_point started) {
  constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;
  if (options.json != "-") fmt::print("{}", Table(run, figures));
  std::string error;
  if (!options.json.empty())
    error = WriteFile(options.json, ToJson(run, figures).dump(2, ' ', false, kReplace) + "\n");
  if (error.empty() && !options.svg.empty()) error = WriteFile(options.svg, Plot(run, figures));
  if (error.empty() && !options.samples.empty()) {
    std::string lines;
    for (const Sample& sample : collector.samples())
      lines += ToJson(sample, started).dump(-1, ' ', false, kReplace) + "\n";
    error = WriteFile(options.samples, lines);
  }
  return error;
}

}  // namespace

ExitCode RunBench(const std::vector<std::string>& arguments) {
  const auto [options, wrong] = ParseBench(arguments);
  if (!wrong.empty()) return Fail(kUsage, wrong + "\nt6 bench --help says more.");
  boost::asio::io_context io(1);
  std::unique_ptr<Target> target;
  if (options.http.empty()) {
    target =
        MakeGrpcTarget(options.grpc, options.service_config,
                       options.rate ? options.max_in_flight : options.concurrency, RequestOptions(options));
  } else {
    HttpAddress address;
    if (std::string error = ParseHttpAddress(options.http, address); !error.empty())
      return Fail(kUsage, "--http: " + error);
    target = MakeHttpTarget(io, address, RequestOptions(options));
  }
  BenchRun run{.model = options.model,
               .target = target->Describe(),
               .max_tokens = options.max_tokens,
               .seed = options.seed};
  if (std::string error = target->Connect(run.model); !error.empty()) return Fail(kUnreachable, error);

  std::vector<BenchPrompt> prompts;
  if (std::string error = MakePrompts(options, *target, prompts, run.prompts); !error.empty())
    return Fail(kUsage, error);
  Workload workload(std::move(prompts), options.seed);
  run.load = options.rate ? fmt::format("{} requests a second (Poisson)", *options.rate)
                          : fmt::format("{} clients", options.concurrency);

  LoadPlan plan = PlanOf(options);
  Collector collector;
  Figures figures;
  BenchClock::time_point started;
  if (options.warmup > 0) {
    LoadPlan warmup = plan;
    warmup.requests = options.warmup;
    warmup.duration.reset();
    Collector dropped;
    if (RunLoad(io, *target, workload, warmup, "warm-up", options.quiet, dropped, figures, started))
      return kInterrupted;
  }
  run.interrupted = RunLoad(io, *target, workload, plan, "bench", options.quiet, collector, figures, started);
  if (std::string error = WriteReports(options, run, figures, collector, started); !error.empty())
    return Fail(kFailed, error);
  return run.interrupted ? kInterrupted : figures.failed > 0 ? kFailed : kDone;
}

}  // namespace t6::cli
