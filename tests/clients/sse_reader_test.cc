#include "clients/cli/bench/sse_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace t6::cli {
namespace {

using testing::ElementsAre;

TEST(SseReaderTest, EventsComeWholeHoweverTheBytesAreCut) {
  const std::string stream =
      ": hello\r\ndata: {\"a\": 1}\r\n\r\nid: 3\ndata:b\ndata: c\n\n\n\ndata: [DONE]\n\n";
  for (size_t cut = 1; cut <= stream.size(); ++cut) {
    SseReader reader;
    std::vector<std::string> events;
    for (size_t at = 0; at < stream.size(); at += cut)
      ASSERT_TRUE(reader.Feed(std::string_view(stream).substr(at, cut),
                              [&](std::string_view data) { events.emplace_back(data); }));
    EXPECT_THAT(events, ElementsAre("{\"a\": 1}", "b\nc", "[DONE]")) << cut;
  }
}

TEST(SseReaderTest, WhatNeverEndsIsRefused) {
  SseReader reader;
  const std::string piece(size_t{1} << 20, 'x');
  bool taken = true;
  for (int i = 0; i < 20 && taken; ++i) taken = reader.Feed(piece, [](std::string_view) {});
  EXPECT_FALSE(taken);
}

}  // namespace
}  // namespace t6::cli
