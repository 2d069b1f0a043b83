#include "clients/cli/bench/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

namespace t6::cli {
namespace {

constexpr char kStyle[] = R"(<style>
  svg { --paper: #ffffff; --ink: #1c2128; --soft: #59636e; --line: #dfe3e8; --a: #0b62c4; --b: #b35309; --bad: #c4262e;
    font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #12161c; --ink: #e8ecf1; --soft: #9aa5b1; --line: #2b323b; --a: #6cb0ff; --b: #f0a35e; --bad: #ff7b80; } }
  .paper { fill: var(--paper); } text { fill: var(--soft); } .ink { fill: var(--ink); } .title { font-size: 17px; font-weight: 600; }
  .grid { stroke: var(--line); fill: none; } .end { text-anchor: end; } .mid { text-anchor: middle; }
  .a { stroke: var(--a); } .b { stroke: var(--b); } .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
  .area { fill: var(--a); fill-opacity: .14; stroke: none; } .fa { fill: var(--a); } .fb { fill: var(--b); }
  .bad { fill: var(--bad); } .num { font-variant-numeric: tabular-nums; }
</style>
)";

struct Panel {
  double left, top, width, height;
  double right() const { return left + width; }
  double bottom() const { return top + height; }
};
constexpr Panel kCdf{64, 128, 372, 236}, kTime{532, 128, 372, 236};
constexpr int kWidth = 940, kHeight = 452;

std::string TextAt(double x, double y, const char* classes, std::string_view text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\">{}</text>\n", x, y, classes,
                     EscapeXml(text));
}

std::string LineFrom(double x1, double y1, double x2, double y2) {
  return fmt::format("<path class=\"grid\" d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\"/>\n", x1, y1, x2, y2);
}

std::string Dot(double x, double y, const char* classes) {
  return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" class=\"{}\"/>\n", x, y, classes);
}

std::string TickText(double value) {
  return value >= 1000 ? Thousands(std::llround(value)) : fmt::format("{:g}", value);
}

// One distribution as a curve that is as smooth as its samples, with its median and 99th percentile marked.
std::string Curve(const std::vector<double>& sorted, const char* color, const char* fill, auto x_of,
                  auto y_of) {
  if (sorted.empty()) return "";
  std::string path;
  constexpr int kSteps = 240;
  for (int i = 0; i <= kSteps; ++i) {
    const double q = static_cast<double>(i) / kSteps;
    path += fmt::format("{}{:.1f} {:.1f}", i == 0 ? 'M' : 'L', x_of(Quantile(sorted, q)), y_of(q));
  }
  std::string text = fmt::format("<path class=\"curve {}\" d=\"{}\"/>\n", color, path);
  for (const double q : {0.5, 0.99}) text += Dot(x_of(Quantile(sorted, q)), y_of(q), fill);
  return text;
}

std::string CdfPanel(const Figures& f) {
  std::string text =
      TextAt(kCdf.left, kCdf.top - 34, "ink", "Share of the answers that came within so many milliseconds");
  if (f.end_to_end_sorted.empty()) return text + TextAt(kCdf.left, kCdf.top, "", "none was answered");
  const double floor = 1e-5;  // seconds; a logarithm needs some
  const auto ticks =
      LogTicks(std::max(std::min(f.first_token_sorted.front(), f.end_to_end_sorted.front()), floor) * 1000,
               std::max(f.end_to_end_sorted.back(), floor) * 1000);
  const double low = std::log(ticks.front()), high = std::log(ticks.back());
  const auto x_of_ms = [&](double ms) {
    return kCdf.left + kCdf.width * (std::log(ms) - low) / (high - low);
  };
  const auto x_of = [&](double seconds) { return x_of_ms(std::max(seconds, floor) * 1000); };
  const auto y_of = [&](double q) { return kCdf.bottom() - kCdf.height * q; };
  for (const double q : {0.0, 0.25, 0.5, 0.75, 1.0}) {
    text += LineFrom(kCdf.left, y_of(q), kCdf.right(), y_of(q));
    text += TextAt(kCdf.left - 10, y_of(q) + 4, "end num", fmt::format("{:.0f} %", 100 * q));
  }
  double free_from = 0;  // labels must not run into each other
  for (const double tick : ticks) {
    text += LineFrom(x_of_ms(tick), kCdf.top, x_of_ms(tick), kCdf.bottom());
    if (x_of_ms(tick) < free_from) continue;
    text += TextAt(x_of_ms(tick), kCdf.bottom() + 20, "mid num", TickText(tick));
    free_from = x_of_ms(tick) + 34;
  }
  const auto legend = [&](double y, const char* fill, std::string_view name, const Distribution& d) {
    return Dot(kCdf.left + 4, y - 4.5, fill) +
           TextAt(kCdf.left + 14, y, "num",
                  fmt::format("{}: median {} ms, 99 % within {} ms", name, ShowMilliseconds(d.p50),
                              ShowMilliseconds(d.p99)));
  };
  text += legend(kCdf.bottom() + 46, "fa", "first token", f.first_token);
  text += legend(kCdf.bottom() + 65, "fb", "last token", f.end_to_end);
  return text + Curve(f.end_to_end_sorted, "b", "fb", x_of, y_of) +
         Curve(f.first_token_sorted, "a", "fa", x_of, y_of);
}

std::string TimePanel(const Figures& f) {
  std::string text = TextAt(kTime.left, kTime.top - 34, "ink", "Tokens generated a second");
  const Timeline& line = f.timeline;
  const double most = *std::max_element(line.tokens.begin(), line.tokens.end());
  const auto ticks = LinearTicks(most > 0 ? most : 1, 4);
  const double seconds = std::max(f.seconds, 1e-3);
  const auto x_of = [&](double s) { return kTime.left + kTime.width * std::min(s / seconds, 1.0); };
  const auto y_of = [&](double v) { return kTime.bottom() - kTime.height * v / ticks.back(); };
  for (const double tick : ticks) {
    text += LineFrom(kTime.left, y_of(tick), kTime.right(), y_of(tick));
    text += TextAt(kTime.left - 10, y_of(tick) + 4, "end num", TickText(tick));
  }
  for (const double tick : LinearTicks(seconds, 5))
    if (tick <= seconds) text += TextAt(x_of(tick), kTime.bottom() + 20, "mid num", TickText(tick));
  text += TextAt(kTime.right(), kTime.bottom() + 46, "end", "seconds");
  std::string steps;
  for (size_t i = 0; i < line.tokens.size(); ++i) {
    const double from = x_of(static_cast<double>(i) * line.bin_seconds);
    const double to = x_of(static_cast<double>(i + 1) * line.bin_seconds);
    steps += fmt::format("{}{:.1f} {:.1f}H{:.1f}", i == 0 ? 'M' : 'L', from, y_of(line.tokens[i]), to);
    if (line.failures[i] > 0)
      text += fmt::format("<path class=\"bad\" d=\"M{:.1f} {:.1f}H{:.1f}v6H{:.1f}z\"/>\n", from,
                          kTime.bottom() + 1, std::max(to, from + 2), from);
  }
  text += fmt::format("<path class=\"area\" d=\"{}V{:.1f}H{:.1f}z\"/>\n", steps, kTime.bottom(), kTime.left);
  text += fmt::format("<path class=\"curve a\" d=\"{}\"/>\n", steps);
  if (f.failed > 0)
    text += TextAt(kTime.left, kTime.bottom() + 46, "bad num",
                   fmt::format("{} requests failed", Thousands(f.failed)));
  return text;
}

}  // namespace

std::vector<double> LinearTicks(double highest, int n) {
  const double power = std::pow(10, std::floor(std::log10(highest / n)));
  double step = 10 * power;
  for (const double s : {1.0, 2.0, 5.0}) {
    if (s * power * n >= highest * (1 - 1e-9)) {
      step = s * power;
      break;
    }
  }
  std::vector<double> ticks;
  for (int i = 0; i == 0 || ticks.back() < highest * (1 - 1e-9); ++i) ticks.push_back(i * step);
  return ticks;
}

std::vector<double> LogTicks(double lowest, double highest) {
  std::vector<double> ticks;
  for (double power = std::pow(10, std::floor(std::log10(lowest)));; power *= 10) {
    for (const double s : {1.0, 2.0, 5.0}) {
      const double tick = s * power;
      if (tick <= lowest * (1 + 1e-9)) ticks.clear();  // the last one below is where the axis starts
      ticks.push_back(tick);
      if (tick >= highest && ticks.size() >= 2) return ticks;
    }
  }
}

std::string EscapeXml(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
    }
  }
  return escaped;
}

std::string Plot(const BenchRun& run, const Figures& f) {
  std::string text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "role=\"img\">\n",
      kWidth, kHeight);
  const std::string summary =
      fmt::format("{:.1f} answers and {} tokens a second, {:.1f} % of the prompt tokens from the cache",
                  f.PerSecond(f.answered), Thousands(std::llround(f.PerSecond(f.completion_tokens))),
                  100 * f.CachedRatio());
  text += fmt::format("<title>{}</title>\n", EscapeXml(summary)) + kStyle;
  text += fmt::format("<rect class=\"paper\" width=\"{}\" height=\"{}\" rx=\"10\"/>\n", kWidth, kHeight);
  text += TextAt(28, 38, "ink title",
                 fmt::format("{}, {} over {}", run.model, run.load, run.target.substr(0, 4)));
  text += TextAt(28, 62, "num", summary);
  return text + CdfPanel(f) + TimePanel(f) + "</svg>\n";
}

}  // namespace t6::cli
