#include "clients/cli/bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace t6::cli {
namespace {

constexpr size_t kMostBins = 75;

double Seconds(BenchClock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// A width people can read: 1, 2 or 5 times a power of ten, at most kMostBins of them, at least 100 ms.
double BinSeconds(double seconds) {
  const double least = std::max(seconds / kMostBins, 0.1);
  const double power = std::pow(10, std::floor(std::log10(least)));
  for (const double step : {1.0, 2.0, 5.0})
    if (step * power >= least * (1 - 1e-9)) return step * power;
  return 10 * power;
}

// Adds `amount`, spread evenly over [from, to), to bins as a rate.
void Spread(std::vector<double>& bins, double width, double from, double to, double amount) {
  const auto bin_of = [&](double at) {
    return std::min(static_cast<size_t>(std::max(at, 0.0) / width), bins.size() - 1);
  };
  if (to <= from) {
    bins[bin_of(to)] += amount / width;
    return;
  }
  for (size_t i = bin_of(from); i <= bin_of(to); ++i) {
    const double begin = std::max(from, static_cast<double>(i) * width);
    const double end = i + 1 == bins.size() ? to : std::min(to, static_cast<double>(i + 1) * width);
    if (end > begin) bins[i] += amount * (end - begin) / (to - from) / width;
  }
}

Timeline MakeTimeline(const std::vector<Sample>& samples, BenchClock::time_point started, double seconds) {
  Timeline line;
  line.bin_seconds = BinSeconds(seconds);
  const auto n = static_cast<size_t>(std::max(1.0, std::ceil(seconds / line.bin_seconds)));
  line.tokens.resize(n);
  line.answers.resize(n);
  line.failures.resize(n);
  for (const Sample& sample : samples) {
    const double end = Seconds(sample.end - started);
    Spread(sample.error.empty() ? line.answers : line.failures, line.bin_seconds, end, end, 1);
    if (sample.has_text)
      Spread(line.tokens, line.bin_seconds, Seconds(sample.first_text - started),
             Seconds(sample.last_text - started), sample.completion_tokens);
  }
  return line;
}

std::vector<double> Sorted(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values;
}

}  // namespace

double Quantile(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return 0;
  const double rank = std::clamp(q, 0.0, 1.0) * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], rank - static_cast<double>(below));
}

Distribution Summarise(const std::vector<double>& sorted) {
  if (sorted.empty()) return {};
  return {.count = sorted.size(),
          .mean = std::accumulate(sorted.begin(), sorted.end(), 0.0) / static_cast<double>(sorted.size()),
          .p50 = Quantile(sorted, 0.5),
          .p90 = Quantile(sorted, 0.9),
          .p99 = Quantile(sorted, 0.99),
          .max = sorted.back()};
}

Distribution Summarise(const Histogram& histogram) {
  return {.count = histogram.count(),
          .mean = histogram.mean(),
          .p50 = histogram.Quantile(0.5),
          .p90 = histogram.Quantile(0.9),
          .p99 = histogram.Quantile(0.99),
          .max = histogram.max()};
}

double Figures::Imbalance() const {
  int64_t sum = 0, most = 0;
  for (const auto& [name, count] : replicas) {
    sum += count;
    most = std::max(most, count);
  }
  return sum == 0
             ? 0
             : static_cast<double>(most * static_cast<int64_t>(replicas.size())) / static_cast<double>(sum);
}

void Collector::Add(Sample sample) {
  for (const float gap : sample.gaps) gaps_.Add(gap);
  sample.gaps = {};
  if (sample.has_text) first_tokens_.Add(Seconds(sample.first_text - sample.due));
  failed_ += sample.error.empty() ? 0 : 1;
  samples_.push_back(std::move(sample));
}

Figures Collector::Make(BenchClock::time_point started, int64_t not_sent) const {
  Figures figures;
  figures.not_sent = not_sent;
  std::vector<double> first, per_token, end_to_end;
  for (const Sample& sample : samples_) {
    figures.seconds = std::max(figures.seconds, Seconds(sample.end - started));
    if (!sample.error.empty()) {
      ErrorCount& error = figures.errors[sample.error];
      if (error.count++ == 0) error.example = sample.message;
      error.after_text += sample.has_text ? 1 : 0;
      ++figures.failed;
      continue;
    }
    ++figures.answered;
    figures.prompt_tokens += sample.prompt_tokens;
    figures.cached_tokens += sample.cached_tokens;
    figures.completion_tokens += sample.completion_tokens;
    if (!sample.replica.empty()) ++figures.replicas[sample.replica];
    end_to_end.push_back(Seconds(sample.end - sample.due));
    // An empty answer has no first token; it is over at its end.
    first.push_back(Seconds((sample.has_text ? sample.first_text : sample.end) - sample.due));
    if (sample.has_text && sample.completion_tokens > 1)
      per_token.push_back(Seconds(sample.end - sample.first_text) / (sample.completion_tokens - 1));
  }
  figures.first_token_sorted = Sorted(std::move(first));
  figures.end_to_end_sorted = Sorted(std::move(end_to_end));
  figures.first_token = Summarise(figures.first_token_sorted);
  figures.end_to_end = Summarise(figures.end_to_end_sorted);
  figures.per_token = Summarise(Sorted(std::move(per_token)));
  figures.token_gap = Summarise(gaps_);
  figures.timeline = MakeTimeline(samples_, started, figures.seconds);
  return figures;
}

}  // namespace t6::cli
