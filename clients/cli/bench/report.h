// The figures as a table for people, and as JSON for programs. Pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "clients/cli/bench/statistics.h"

namespace t6::cli {

// What was run, for headings.
struct BenchRun {
  std::string model = {};
  std::string target = {};   // "gRPC at 127.0.0.1:50051"
  std::string load = {};     // "8 clients" or "50 requests a second (Poisson)"
  std::string prompts = {};  // "8 questions about each of 16 documents"
  int max_tokens = 0;
  uint64_t seed = 0;
  bool interrupted = false;
};

std::string Table(const BenchRun& run, const Figures& figures);

// Milliseconds, as the names say.
nlohmann::ordered_json ToJson(const BenchRun& run, const Figures& figures);

// One line of --samples; times from the start of the run.
nlohmann::ordered_json ToJson(const Sample& sample, BenchClock::time_point started);

// 12345678 -> "12,345,678"
std::string Thousands(int64_t n);

// Three figures at least: 4.27, 42.7, 427, 4,270
std::string ShowMilliseconds(double seconds);

}  // namespace t6::cli
