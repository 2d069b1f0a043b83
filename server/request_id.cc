#include "server/request_id.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <random>

namespace t6::server {

bool IsValidRequestId(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

std::string RequestIdFrom(std::string_view client_id) {
  return IsValidRequestId(client_id) ? std::string(client_id) : MakeId("req-");
}

std::string MakeId(std::string_view prefix) {
  // Unique, not secret: seeded once per thread.
  thread_local std::mt19937_64 random{[] {
    std::random_device device;
    return (uint64_t{device()} << 32) ^ device();
  }()};
  return fmt::format("{}{:016x}{:08x}", prefix, random(), random() >> 32);
}

}  // namespace t6::server
