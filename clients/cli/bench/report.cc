#include "clients/cli/bench/report.h"

#include <fmt/format.h>

#include <cmath>
#include <string_view>

namespace t6::cli {
namespace {

using Json = nlohmann::ordered_json;

double Rounded(double value, double steps_per_unit) {
  return std::round(value * steps_per_unit) / steps_per_unit;
}
double Milliseconds(double seconds) { return Rounded(seconds * 1000, 1000); }

double MillisecondsBetween(BenchClock::time_point from, BenchClock::time_point to) {
  return Milliseconds(std::chrono::duration<double>(to - from).count());
}

std::string Row(std::string_view name, const Distribution& d) {
  if (d.count == 0) return "";
  std::string row = fmt::format("  {:<20}", name);
  for (const double value : {d.mean, d.p50, d.p90, d.p99, d.max})
    row += fmt::format("{:>10}", ShowMilliseconds(value));
  return row + "\n";
}

std::string ErrorLines(const Figures& figures) {
  std::string lines;
  for (const auto& [code, error] : figures.errors) {
    lines += fmt::format("  {} x {}", Thousands(error.count), code);
    if (error.after_text > 0)
      lines += fmt::format(", {} of them in the middle of an answer", error.after_text);
    lines += fmt::format(": {}\n", error.example);
  }
  return lines;
}

std::string ReplicaLines(const Figures& figures) {
  if (figures.replicas.empty()) return "";
  std::string lines = "\n  replica                answers\n";
  for (const auto& [name, count] : figures.replicas)
    lines += fmt::format("  {:<20}{:>10}  {:>5.1f} %\n", name, Thousands(count),
                         100.0 * static_cast<double>(count) / static_cast<double>(figures.answered));
  return lines + fmt::format("  the busiest had {:.2f} x the mean\n", figures.Imbalance());
}

Json ToJson(const Distribution& d) {
  return {{"count", d.count},           {"mean", Milliseconds(d.mean)}, {"p50", Milliseconds(d.p50)},
          {"p90", Milliseconds(d.p90)}, {"p99", Milliseconds(d.p99)},   {"max", Milliseconds(d.max)}};
}

Json Rates(const std::vector<double>& rates) {
  Json list = Json::array();
  for (const double rate : rates) list.push_back(Rounded(rate, 1000));
  return list;
}

}  // namespace

std::string Thousands(int64_t n) {
  std::string digits = std::to_string(n);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3)
    digits.insert(static_cast<size_t>(at), ",");
  return digits;
}

std::string ShowMilliseconds(double seconds) {
  const double ms = seconds * 1000;
  if (ms < 9.995) return fmt::format("{:.2f}", ms);
  if (ms < 99.95) return fmt::format("{:.1f}", ms);
  return Thousands(std::llround(ms));
}

std::string Table(const BenchRun& run, const Figures& f) {
  std::string text = fmt::format("\n{} over {}: {}; {}, at most {} tokens each\n\n", run.model, run.target,
                                 run.load, run.prompts, run.max_tokens);
  text +=
      fmt::format("  {} of {} requests answered in {:.2f} s{}\n", Thousands(f.answered),
                  Thousands(f.answered + f.failed), f.seconds, run.interrupted ? ", then interrupted" : "");
  text += ErrorLines(f);
  if (f.not_sent > 0)
    text += fmt::format("  {} more were due but not sent: too many waited already (--max-in-flight)\n",
                        Thousands(f.not_sent));
  text +=
      fmt::format("\n  a second             {:.1f} answers, {:.0f} tokens generated, {:.0f} prompt tokens\n",
                  f.PerSecond(f.answered), f.PerSecond(f.completion_tokens), f.PerSecond(f.prompt_tokens));
  text += fmt::format("  cached               {:.1f} % of the prompt tokens ({} of {})\n",
                      100 * f.CachedRatio(), Thousands(f.cached_tokens), Thousands(f.prompt_tokens));
  if (f.answered > 0) {
    text += fmt::format("\n  {:<20}{:>10}{:>10}{:>10}{:>10}{:>10}\n", "milliseconds", "mean", "p50", "p90",
                        "p99", "max");
    text += Row("to the first token", f.first_token);
    text += Row("between two pieces", f.token_gap);
    text += Row("per further token", f.per_token);
    text += Row("to the end", f.end_to_end);
  }
  return text + ReplicaLines(f) + "\n";
}

Json ToJson(const BenchRun& run, const Figures& f) {
  Json errors = Json::object();
  for (const auto& [code, error] : f.errors)
    errors[code] = {{"count", error.count}, {"after_text", error.after_text}, {"example", error.example}};
  return {{"model", run.model},
          {"target", run.target},
          {"load", run.load},
          {"prompts", run.prompts},
          {"max_tokens", run.max_tokens},
          {"seed", run.seed},
          {"interrupted", run.interrupted},
          {"seconds", Rounded(f.seconds, 1e6)},
          {"requests", f.answered + f.failed},
          {"answered", f.answered},
          {"failed", f.failed},
          {"not_sent", f.not_sent},
          {"errors", std::move(errors)},
          {"requests_per_second", Rounded(f.PerSecond(f.answered), 1000)},
          {"tokens_per_second", Rounded(f.PerSecond(f.completion_tokens), 1000)},
          {"prompt_tokens", f.prompt_tokens},
          {"cached_tokens", f.cached_tokens},
          {"cached_ratio", Rounded(f.CachedRatio(), 1e6)},
          {"completion_tokens", f.completion_tokens},
          {"first_token_ms", ToJson(f.first_token)},
          {"token_gap_ms", ToJson(f.token_gap)},
          {"per_token_ms", ToJson(f.per_token)},
          {"end_to_end_ms", ToJson(f.end_to_end)},
          {"replicas", f.replicas},
          {"imbalance", Rounded(f.Imbalance(), 1000)},
          {"timeline",
           {{"bin_seconds", f.timeline.bin_seconds},
            {"tokens_per_second", Rates(f.timeline.tokens)},
            {"answers_per_second", Rates(f.timeline.answers)},
            {"failures_per_second", Rates(f.timeline.failures)}}}};
}

Json ToJson(const Sample& sample, BenchClock::time_point started) {
  Json first = nullptr;
  if (sample.has_text) first = MillisecondsBetween(started, sample.first_text);
  return {{"due_ms", MillisecondsBetween(started, sample.due)},
          {"first_token_ms", std::move(first)},
          {"end_ms", MillisecondsBetween(started, sample.end)},
          {"document", sample.document},
          {"error", sample.error},
          {"message", sample.message},
          {"replica", sample.replica},
          {"prompt_tokens", sample.prompt_tokens},
          {"cached_tokens", sample.cached_tokens},
          {"completion_tokens", sample.completion_tokens}};
}

}  // namespace t6::cli
