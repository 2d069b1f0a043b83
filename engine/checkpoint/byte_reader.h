// Reads little-endian numbers and runs of bytes from a span, never past its end: after a read that does not
// fit, failed() is true, and that read and all later ones give zeros. Owns nothing.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace t6 {

class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes, uint64_t at = 0)
      : bytes_(bytes), at_(at), failed_(at > bytes.size()) {}

  template <typename T>
  T Read() {
    static_assert(std::endian::native == std::endian::little);
    T value{};
    if (Fits(sizeof(T))) {
      std::memcpy(&value, bytes_.data() + at_, sizeof(T));
      at_ += sizeof(T);
    }
    return value;
  }

  std::string_view Take(uint64_t n) {
    if (!Fits(n)) return {};
    const auto* first = reinterpret_cast<const char*>(bytes_.data() + at_);
    at_ += n;
    return {first, static_cast<size_t>(n)};
  }

  // Up to and without the next newline, which is passed over; at most `limit` bytes.
  std::string_view Line(uint64_t limit) {
    if (failed_) return {};
    const auto* first = reinterpret_cast<const char*>(bytes_.data() + at_);
    for (uint64_t n = 0; n <= limit && at_ + n < bytes_.size(); ++n) {
      if (first[n] != '\n') continue;
      at_ += n + 1;
      return {first, static_cast<size_t>(n)};
    }
    failed_ = true;
    return {};
  }

  bool failed() const { return failed_; }
  uint64_t at() const { return at_; }
  uint64_t left() const { return failed_ ? 0 : bytes_.size() - at_; }

 private:
  bool Fits(uint64_t n) {
    if (!failed_ && n > bytes_.size() - at_) failed_ = true;
    return !failed_;
  }

  std::span<const uint8_t> bytes_;
  uint64_t at_;
  bool failed_;
};

}  // namespace t6
