// What `t6 bench` was asked to do, checked. Plain data; parsing prints nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace t6::cli {

struct BenchOptions {
  std::string grpc = "127.0.0.1:50051";
  std::string http;            // a URL; empty: over gRPC
  std::string service_config;  // JSON, for gRPC
  std::string api_key;
  std::string model;  // empty: the server's first

  int concurrency = 8;         // closed loop: so many clients, each asks again when it was answered
  std::optional<double> rate;  // open loop: arrivals a second
  int max_in_flight = 1000;    // open loop: arrivals beyond it are counted, not sent
  std::optional<int64_t> requests;
  std::optional<double> duration;  // seconds
  int64_t warmup = 0;              // requests before those that count
  double timeout = 60;             // seconds for one request

  std::string prompts;  // a file; empty: synthetic documents
  int documents = 16;
  int questions = 8;
  int document_words = 300;
  std::optional<int> document_tokens;  // overrules words
  std::optional<std::string> system;   // the instruction before a document
  bool affinity = false;               // send x-t6-context
  uint64_t seed = 1;

  int max_tokens = 32;
  float temperature = 0;
  bool ignore_eos = false;

  std::string json, svg, samples;  // files to write
  bool quiet = false;
};

struct BenchParseResult {
  BenchOptions options;
  std::string error;  // empty: options are good
};

// `arguments`: what follows `t6 bench`.
BenchParseResult ParseBench(const std::vector<std::string>& arguments);

std::string BenchHelp();

}  // namespace t6::cli
