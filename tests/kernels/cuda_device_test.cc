// What an operator is told where the GPU cannot be used, or not for so much. Needs none, but for one test.
#include <gtest/gtest.h>

#include <string>

#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/cuda_memory.h"
#include "engine/backend/cuda/device.h"
#include "tests/support/has_gpu.h"

namespace t6::cuda {
namespace {

using testing::HasGpu;

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

TEST(CudaDevice, MissingMemoryIsNamedWithWhatToDo) {
  const Status device = NoDeviceMemory((size_t{5} << 30) + 1, (size_t{300} << 20) + 5);
  EXPECT_EQ(device.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"300 MiB free", "5121 MiB", "other processes", "--cache-bytes"})
    EXPECT_NE(Said(device).find(part), std::string::npos) << device;
  const Status pinned = NoPinnedMemory(size_t{1} << 30);
  EXPECT_EQ(pinned.code(), absl::StatusCode::kResourceExhausted);
  for (const char* part : {"1024 MiB", "--max-context"})
    EXPECT_NE(Said(pinned).find(part), std::string::npos) << pinned;
}

// Where there is a GPU the device opens, or every other test would be skipped in silence; where there is none
// the message says so, and nothing crashes.
TEST(CudaDevice, OpensOrSaysWhyNot) {
  const auto device = OpenDevice();
  const auto backend = MakeCudaBackend();
  if (HasGpu()) {
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_TRUE(backend.ok()) << backend.status();
    EXPECT_GT(device->n_sms, 0);
    EXPECT_GT(device->memory_available, size_t{1} << 30);
    return;
  }
  ASSERT_FALSE(device.ok()) << device->description;
  EXPECT_FALSE(backend.ok());
  EXPECT_EQ(Said(backend.status()), Said(device.status()));
  EXPECT_EQ(device.status().code(), absl::StatusCode::kUnavailable) << device.status();
}

// Of a GPU that has not so much: the next launch has nothing to do with it.
TEST(CudaDevice, AnAllocationThatFailsLeavesNoErrorBehind) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU";
  ASSERT_TRUE(OpenDevice().ok());
  DeviceMemory memory;
  const Status status = memory.Allocate(size_t{1} << 50);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_NE(Said(status).find("1073741824 MiB are needed"), std::string::npos) << status;
  EXPECT_EQ(memory.as<void>(), nullptr);
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess);
  EXPECT_TRUE(memory.Allocate(1000).ok());
}

}  // namespace
}  // namespace t6::cuda
