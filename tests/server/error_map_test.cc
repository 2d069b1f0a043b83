#include "server/error_map.h"

#include <gtest/gtest.h>

#include "server/request_id.h"

namespace t6::server {
namespace {

TEST(ErrorMap, EveryCodeHasItsRow) {
  const std::pair<absl::StatusCode, int> expected[] = {
      {absl::StatusCode::kInvalidArgument, 400},  {absl::StatusCode::kUnauthenticated, 401},
      {absl::StatusCode::kPermissionDenied, 403}, {absl::StatusCode::kNotFound, 404},
      {absl::StatusCode::kDeadlineExceeded, 504}, {absl::StatusCode::kResourceExhausted, 429},
      {absl::StatusCode::kUnavailable, 503},      {absl::StatusCode::kUnimplemented, 400},
      {absl::StatusCode::kCancelled, 499},        {absl::StatusCode::kInternal, 500},
  };
  for (const auto& [code, http_status] : expected) {
    const WireError& row = WireErrorOf(Status(code, "x"));
    EXPECT_EQ(row.code, code);
    EXPECT_EQ(row.http_status, http_status);
  }
  EXPECT_EQ(WireErrorOf(Status(static_cast<absl::StatusCode>(99), "x")).http_status, 500);
}

TEST(ErrorMap, OnlyBusyAndUnavailableHintAtARetry) {
  EXPECT_GT(WireErrorOf(ResourceExhausted("x")).retry_after_ms, 0);
  EXPECT_GT(WireErrorOf(Unavailable("x")).retry_after_ms, 0);
  EXPECT_LT(WireErrorOf(InvalidArgument("x")).retry_after_ms, 0);
}

TEST(ErrorMap, PayloadsTravelWithTheStatus) {
  const Status plain = NotFound("x");
  EXPECT_EQ(GetErrorParam(plain), "");
  EXPECT_EQ(GetErrorCode(plain), "not_found");
  const Status status = SetErrorCode(BadField("top_p", "top_p is {}", 7), "too_much");
  EXPECT_EQ(status.message(), "top_p is 7");
  EXPECT_EQ(GetErrorParam(status), "top_p");
  EXPECT_EQ(GetErrorCode(status), "too_much");
}

TEST(ErrorMap, QuotesAreShortAndWhole) {
  EXPECT_EQ(Clipped(std::string(64, 'x')), std::string(64, 'x'));
  EXPECT_EQ(Clipped(std::string(65, 'x')), fmt::format("{}...", std::string(64, 'x')));
  EXPECT_EQ(Clipped(fmt::format("{}\u00e9\u00e9", std::string(63, 'x'))),
            fmt::format("{}...", std::string(63, 'x')));
}

TEST(RequestId, OnlyShortVisibleAsciiIsTaken) {
  EXPECT_EQ(RequestIdFrom("abc-1"), "abc-1");
  EXPECT_EQ(RequestIdFrom(std::string(128, 'x')), std::string(128, 'x'));
  for (const std::string& bad : {std::string(), std::string("a b"), std::string("a\nb"),
                                 std::string("\xC3\xA9"), std::string(129, 'x'), std::string("a\0b", 3)}) {
    EXPECT_NE(RequestIdFrom(bad), bad);
    EXPECT_TRUE(IsValidRequestId(RequestIdFrom(bad)));
  }
  EXPECT_NE(MakeId("x"), MakeId("x"));
}

}  // namespace
}  // namespace t6::server
