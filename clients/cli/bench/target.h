// A server under load, over one of its two transports, and what became of one request.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "clients/cli/bench/workload.h"

namespace t6::cli {

using BenchClock = std::chrono::steady_clock;

// What a client saw of one request. Times are the client's.
struct Sample {
  BenchClock::time_point due;  // when it should have been sent: time starts here
  BenchClock::time_point first_text, last_text;
  BenchClock::time_point end;
  bool has_text = false;
  std::vector<float> gaps;  // seconds between two pieces of text
  std::string error;        // a code such as UNAVAILABLE or 503; empty: answered to its end
  std::string message;      // of the error
  std::string replica;      // what x-t6-replica said, if anything did
  int prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  int document = 0;

  void OnText(BenchClock::time_point now);
};

// What is asked of every prompt.
struct BenchRequestOptions {
  std::string model = {};
  int max_tokens = 32;
  float temperature = 0;
  bool ignore_eos = false;
  uint64_t seed = 1;
  bool affinity = false;
  std::string api_key = {};  // empty: none
  std::chrono::duration<double> timeout{60};
};

class Target {
 public:
  virtual ~Target() = default;

  // "gRPC at 127.0.0.1:50051"
  virtual std::string Describe() const = 0;
  // Blocking, before the load: learns the model's name unless one was given. An error's text, or nothing.
  virtual std::string Connect(std::string& model) = 0;
  // Blocking: how many tokens a text has. An error's text, or nothing.
  virtual std::string CountTokens(const std::string& text, int& tokens) = 0;

  // Asks, streamed. `done` is called once, on any thread, not inside Send. `prompt` may go after Send.
  virtual void Send(const BenchPrompt& prompt, BenchClock::time_point due,
                    std::function<void(Sample)> done) = 0;
  // Ends what runs: those samples get the error CANCELLED. Any thread.
  virtual void CancelAll() = 0;
};

}  // namespace t6::cli
