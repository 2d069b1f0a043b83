// Which device a configuration gets on this machine, and what is said where it is another.
#include "engine/backend/factory.h"

#include <gtest/gtest.h>

#include "tests/support/has_gpu.h"

namespace t6 {
namespace {

using testing::HasGpu;

TEST(BackendFactory, NamesAnUnknownDevice) {
  const auto made = MakeBackend({.device = "tpu"});
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(made.status().message().find("\"tpu\""), absl::string_view::npos) << made.status();
}

TEST(BackendFactory, TheCpuIsTakenWhereItIsNamed) {
  const auto made = MakeBackend({.device = "cpu", .threads = 1});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->backend->info().kind, "cpu");
  EXPECT_EQ(made->why_not_cuda, "");
}

// "auto" serves where "cuda" refuses, and repeats the reason if the build has CUDA.
TEST(BackendFactory, AutoTakesTheGpuOrSaysWhyNot) {
  const auto named = MakeBackend({.device = "cuda", .threads = 1});
  const auto automatic = MakeBackend({.device = "auto", .threads = 1});
  ASSERT_TRUE(automatic.ok()) << automatic.status();
  if (named.ok()) {
    EXPECT_EQ(automatic->backend->info().kind, "cuda");
    return;
  }
  EXPECT_EQ(automatic->backend->info().kind, "cpu");
  const std::string message(MessageOf(named.status()));
  if (message.find("not in this build") != std::string::npos) {
    EXPECT_EQ(automatic->why_not_cuda, "") << "nobody expects a GPU";
  } else {
    EXPECT_FALSE(HasGpu()) << message;
    EXPECT_EQ(automatic->why_not_cuda, message);
  }
}

}  // namespace
}  // namespace t6
