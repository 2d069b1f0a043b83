// What the user typed, checked. Plain data; parsing prints nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace t6::cli {

inline constexpr char kDefaultSystem[] = "Answer the question from the document. Be short.";

struct Options {
  std::string command;                 // ask, chat, models, health, bench, key; empty if it is none of them
  std::vector<std::string> arguments;  // questions (ask), a service (health), a tenant (key), all of bench
  std::string server = "127.0.0.1:50051";
  std::string api_key;
  std::string model;     // empty: the server's first
  std::string document;  // a file, "-" for standard input
  std::optional<std::string> system;
  std::optional<float> temperature;
  std::optional<int32_t> max_tokens;
  std::optional<uint64_t> seed;
  bool json = false;
  bool stats = false;
  bool help = false;
};

struct ParseResult {
  Options options;
  std::string error;  // empty: options are good
};

ParseResult Parse(const std::vector<std::string>& arguments);

// Of the program, or of one command.
std::string Help(const std::string& command);

}  // namespace t6::cli
