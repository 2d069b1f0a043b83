// The command line of one subcommand: values by flag, and what stands without a flag. INVALID_ARGUMENT names
// a flag that is unknown or incomplete; OUT_OF_RANGE one whose value is not possible.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace t6 {

struct Flag {
  std::string_view name;   // "--dtype"
  std::string_view value;  // "keep|bf16|f32" in the help; empty: a switch
  std::string_view help;
};

class Arguments {
 public:
  // `n_positional`: how many arguments stand without a flag; "--x=y" and "--x y" are the same.
  static StatusOr<Arguments> Parse(const std::vector<std::string>& args, const std::vector<Flag>& flags,
                                   size_t n_positional);

  const std::string& positional(size_t i) const { return positional_[i]; }
  bool Has(std::string_view flag) const { return values_.contains(flag); }
  // The last value given.
  std::string Text(std::string_view flag, std::string_view otherwise) const;
  std::vector<std::string> All(std::string_view flag) const;
  StatusOr<int64_t> Int(std::string_view flag, int64_t otherwise, int64_t least, int64_t most) const;
  // One of `choices`; the first when the flag is not given.
  StatusOr<std::string> Choice(std::string_view flag, const std::vector<std::string_view>& choices) const;
  // "5GB", "5GiB", "1048576".
  StatusOr<uint64_t> Bytes(std::string_view flag, uint64_t otherwise) const;

 private:
  std::vector<std::string> positional_;
  std::multimap<std::string, std::string, std::less<>> values_;
};

// The lines of a help text that tell the flags.
std::string DescribeFlags(const std::vector<Flag>& flags);

// "27.8 MB"
std::string ShowBytes(uint64_t bytes);

}  // namespace t6
