// What an operator is told where the GPU cannot be used. Needs none.
#include <gtest/gtest.h>

#include <string>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/device.h"

namespace t6::cuda {
namespace {

std::string Said(const Status& status) { return std::string(MessageOf(status)); }

TEST(CudaDevice, NamesWhatTheDriverLacks) {
  EXPECT_TRUE(CheckDriver(13000, 13000).ok());
  EXPECT_TRUE(CheckDriver(13020, 13000).ok());
  EXPECT_TRUE(CheckDriver(13000, 13020).ok()) << "minor versions are compatible";
  EXPECT_TRUE(CheckDriver(14000, 13000).ok());
  const Status none = CheckDriver(0, 13000), old = CheckDriver(12080, 13000);
  EXPECT_EQ(none.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Said(none).find("no NVIDIA driver"), std::string::npos) << none;
  EXPECT_EQ(old.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Said(old).find("12.8"), std::string::npos) << old;
  EXPECT_NE(Said(old).find("13.0"), std::string::npos) << old;
}

// Where there is a GPU the device opens; where there is none the message says so, and nothing crashes.
TEST(CudaDevice, OpensOrSaysWhyNot) {
  const auto device = OpenDevice();
  const auto backend = MakeCudaBackend();
  if (device.ok()) {
    EXPECT_GT(device->n_sms, 0);
    EXPECT_GT(device->memory_available, size_t{1} << 30);
    return;
  }
  EXPECT_FALSE(backend.ok());
  EXPECT_EQ(Said(backend.status()), Said(device.status()));
  EXPECT_FALSE(Said(device.status()).empty());
}

}  // namespace
}  // namespace t6::cuda
