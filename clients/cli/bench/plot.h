// The figures as one SVG picture: how many answers came within which time, and tokens a second over time.
// Follows the reader's dark or light setting; needs no font, script or other file. Pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "clients/cli/bench/report.h"

namespace t6::cli {

std::string Plot(const BenchRun& run, const Figures& figures);

// Round numbers from 0 to at least `highest`: about `n` steps of 1, 2 or 5 times a power of ten. `highest` >
// 0.
std::vector<double> LinearTicks(double highest, int n);

// 1, 2 and 5 times powers of ten around [lowest, highest], at least two of them. 0 < lowest <= highest.
std::vector<double> LogTicks(double lowest, double highest);

// Safe inside XML text and attributes; what XML cannot hold becomes a question mark.
std::string EscapeXml(std::string_view text);

}  // namespace t6::cli
