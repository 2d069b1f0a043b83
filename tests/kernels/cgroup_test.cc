#include "engine/backend/cpu/cgroup.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/temporary_folder.h"

namespace t6 {
namespace {

class CgroupTest : public ::testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
  }

  const testing::TemporaryFolder folder_;
  const std::filesystem::path root_ = folder_.path();
};

TEST_F(CgroupTest, NothingThereIsNoLimit) {
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_FALSE(limits.cpus.has_value());
  EXPECT_FALSE(limits.memory_available.has_value());
}

TEST_F(CgroupTest, V2TakesTheTightestOfAllLevels) {
  Write("proc/self/cgroup", "0::/slice/unit");
  Write("sys/fs/cgroup/slice/cpu.max", "150000 100000");
  Write("sys/fs/cgroup/slice/unit/cpu.max", "max 100000");
  Write("sys/fs/cgroup/slice/memory.max", "1000000");
  Write("sys/fs/cgroup/slice/memory.current", "400000");
  Write("sys/fs/cgroup/slice/unit/memory.max", "900000");
  Write("sys/fs/cgroup/slice/unit/memory.current", "100000");
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_EQ(limits.cpus, 1.5);
  EXPECT_EQ(limits.memory_available, size_t{600000});
}

TEST_F(CgroupTest, V2InsideAContainerReadsTheMountItself) {
  Write("proc/self/cgroup", "0::/../../host/only");
  Write("sys/fs/cgroup/cpu.max", "50000 100000");
  Write("sys/fs/cgroup/memory.max", "max");
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_EQ(limits.cpus, 0.5);
  EXPECT_FALSE(limits.memory_available.has_value());
}

TEST_F(CgroupTest, V1ReadsQuotaAndMemory) {
  Write("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc");
  Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000");
  Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000");
  Write("sys/fs/cgroup/memory/memory.usage_in_bytes", "7000");
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_EQ(limits.cpus, 3.0);
  EXPECT_EQ(limits.memory_available, size_t{0});
}

TEST_F(CgroupTest, UnlimitedV1ValuesAreNoLimit) {
  Write("proc/self/cgroup", "4:cpu,cpuacct:/\n3:memory:/");
  Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  const CgroupLimits limits = ReadCgroupLimits(root_);
  EXPECT_FALSE(limits.cpus.has_value());
  EXPECT_FALSE(limits.memory_available.has_value());
}

}  // namespace
}  // namespace t6
