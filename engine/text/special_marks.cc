#include "engine/text/special_marks.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

namespace t6 {
namespace {

bool Stays(char32_t c) { return c < 0x20 || c == '"' || c == '\\' || c >= kMarkPlanes || IsPythonSpace(c); }

// All callers hold text that was checked or rendered, so a failure here is ours.
CodePoint Next(std::string_view text, size_t at) {
  const std::optional<CodePoint> c = CodePointAt(text, at);
  T6_CHECK(c.has_value(), "invalid UTF-8 at byte {}", at);
  return *c;
}

size_t SpaceBefore(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const CodePoint c = Next(text, at);
    if (!IsPythonSpace(c.value)) break;
    at += c.size;
  }
  return at;
}

size_t EndWithoutSpace(std::string_view text) {
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = Next(text, at);
    at += c.size;
    if (!IsPythonSpace(c.value)) end = at;
  }
  return end;
}

}  // namespace

SpecialStrings::SpecialStrings(std::vector<std::pair<int32_t, std::string>> tokens) {
  for (auto& token : tokens) {
    if (token.second.empty()) continue;
    by_first_byte_[static_cast<uint8_t>(token.second[0])].push_back(std::move(token));
  }
  for (auto& list : by_first_byte_) {
    std::stable_sort(list.begin(), list.end(),
                     [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });
  }
}

std::optional<SpecialCut> SpecialStrings::LongestAt(std::string_view text, size_t at) const {
  for (const auto& [id, content] : by_first_byte_[static_cast<uint8_t>(text[at])]) {
    if (text.substr(at, content.size()) == content) return SpecialCut{at, at + content.size(), id};
  }
  return std::nullopt;
}

size_t SpecialStrings::OpenStart(std::string_view text) const {
  size_t longest = 0;
  for (const auto& list : by_first_byte_) {
    for (const auto& [id, content] : list) {
      for (size_t n = std::min(content.size() - 1, text.size()); n > longest; --n) {
        if (content.compare(content.size() - n, n, text.substr(0, n)) == 0) longest = n;
      }
    }
  }
  return longest;
}

size_t SpecialStrings::OpenEnd(std::string_view text) const {
  size_t longest = 0;
  for (const auto& list : by_first_byte_) {
    for (const auto& [id, content] : list) {
      for (size_t n = std::min(content.size() - 1, text.size()); n > longest; --n) {
        if (content.compare(0, n, text.substr(text.size() - n)) == 0) longest = n;
      }
    }
  }
  return longest;
}

std::string Mark(std::string_view text, MarkScheme scheme, const SpecialStrings& special) {
  std::vector<bool> forced(text.size(), false);
  const auto force = [&](size_t begin, size_t end) {
    std::fill(forced.begin() + begin, forced.begin() + end, true);
  };
  size_t done = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (const auto found = special.LongestAt(text, at)) {
      force(std::max(done, at), std::max(done, found->end));
      done = std::max(done, found->end);
    }
  }
  if (scheme == MarkScheme::kSpecialStrings) {
    // The template may trim before it puts its own text beside.
    const size_t begin = SpaceBefore(text);
    const size_t end = EndWithoutSpace(text);
    force(0, special.OpenStart(text));
    force(begin, begin + special.OpenStart(text.substr(begin)));
    force(text.size() - special.OpenEnd(text), text.size());
    force(end - special.OpenEnd(text.substr(0, end)), end);
  }

  std::string marked;
  marked.reserve(text.size() * 2);
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = Next(text, at);
    const bool mark =
        c.value < kMarkPlanes && (forced[at] || (scheme == MarkScheme::kEveryCharacter && !Stays(c.value)));
    AppendUtf8(mark ? c.value + kMarkPlanes : c.value, &marked);
    at += c.size;
  }
  return marked;
}

std::optional<TracedText> Trace(std::string_view plain, std::string_view marked) {
  TracedText traced{std::string(plain), std::vector<bool>(plain.size(), false)};
  size_t at = 0;
  size_t marked_at = 0;
  while (at < plain.size() && marked_at < marked.size()) {
    const CodePoint c = Next(plain, at);
    const CodePoint m = Next(marked, marked_at);
    if (IsMark(m.value)) {
      std::fill_n(traced.from_request.begin() + at, c.size, true);
    } else if (m.value != c.value) {
      return std::nullopt;
    }
    at += c.size;
    marked_at += m.size;
  }
  if (at < plain.size() || marked_at < marked.size()) return std::nullopt;
  return traced;
}

TracedText Unmark(std::string_view marked) {
  TracedText traced;
  traced.text.reserve(marked.size());
  for (size_t at = 0; at < marked.size();) {
    const CodePoint m = Next(marked, at);
    AppendUtf8(IsMark(m.value) ? m.value - kMarkPlanes : m.value, &traced.text);
    traced.from_request.resize(traced.text.size(), IsMark(m.value));
    at += m.size;
  }
  return traced;
}

std::vector<SpecialCut> FindCuts(const TracedText& traced, const SpecialStrings& special) {
  std::vector<SpecialCut> cuts;
  for (size_t at = 0; at < traced.text.size();) {
    const auto found = special.LongestAt(traced.text, at);
    const auto begin = traced.from_request.begin();
    if (found && std::find(begin + found->begin, begin + found->end, true) == begin + found->end) {
      cuts.push_back(*found);
      at = found->end;
    } else {
      ++at;
    }
  }
  return cuts;
}

}  // namespace t6
