#include "engine/text/utf8.h"

namespace t6 {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Lead {
  int size;            // of the whole character; 0: no character starts so
  uint8_t low = 0x80;  // range of the second byte
  uint8_t high = 0xBF;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte < 0xF0)
    return {3, static_cast<uint8_t>(byte == 0xE0 ? 0xA0 : 0x80),
            static_cast<uint8_t>(byte == 0xED ? 0x9F : 0xBF)};
  if (byte < 0xF5)
    return {4, static_cast<uint8_t>(byte == 0xF0 ? 0x90 : 0x80),
            static_cast<uint8_t>(byte == 0xF4 ? 0x8F : 0xBF)};
  return {0};
}

struct Scan {
  int good;       // bytes that belong together
  bool complete;  // they are a character
};

// The longest start of a character at text[at].
Scan ScanAt(std::string_view text, size_t at) {
  const Lead lead = LeadOf(static_cast<uint8_t>(text[at]));
  if (lead.size == 0) return {0, false};
  int good = 1;
  while (good < lead.size && at + good < text.size()) {
    const uint8_t byte = static_cast<uint8_t>(text[at + good]);
    if (byte < (good == 1 ? lead.low : 0x80) || byte > (good == 1 ? lead.high : 0xBF)) break;
    ++good;
  }
  return {good, good == lead.size};
}

}  // namespace

std::optional<CodePoint> CodePointAt(std::string_view text, size_t at) {
  if (at >= text.size()) return std::nullopt;
  const Scan scan = ScanAt(text, at);
  if (!scan.complete) return std::nullopt;
  char32_t value = static_cast<uint8_t>(text[at]);
  if (scan.good > 1) value &= 0x7Fu >> scan.good;
  for (int i = 1; i < scan.good; ++i) value = (value << 6) | (static_cast<uint8_t>(text[at + i]) & 0x3Fu);
  return CodePoint{value, scan.good};
}

size_t FirstInvalidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Scan scan = ScanAt(text, at);
    if (!scan.complete) return at;
    at += scan.good;
  }
  return std::string_view::npos;
}

void AppendUtf8(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return;
  }
  const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  out->push_back(static_cast<char>((0xFF00u >> (more + 1) & 0xFF) | (c >> 6 * more)));
  for (int i = more - 1; i >= 0; --i) out->push_back(static_cast<char>(0x80 | (c >> 6 * i & 0x3F)));
}

bool IsPythonSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::string Utf8Stream::Push(std::string_view bytes) {
  std::string input = std::move(waiting_);
  input += bytes;
  waiting_.clear();
  std::string out;
  out.reserve(input.size());
  for (size_t at = 0; at < input.size();) {
    const Scan scan = ScanAt(input, at);
    if (scan.complete) {
      out.append(input, at, scan.good);
      at += scan.good;
    } else if (scan.good > 0 && at + scan.good == input.size()) {
      waiting_ = input.substr(at);
      break;
    } else {
      out += kReplacement;
      at += scan.good > 0 ? scan.good : 1;
    }
  }
  return out;
}

std::string Utf8Stream::Flush() {
  const bool any = !waiting_.empty();
  waiting_.clear();
  return std::string(any ? kReplacement : "");
}

}  // namespace t6
