#include "worker/daemon/memory_limit.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace ballast {
namespace {

// A machine's files under a folder.
class MemoryLimitTest : public ::testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  const std::string root_ =
      std::string(::testing::TempDir()) + "/" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
};

constexpr int64_t kMiB = 1 << 20;
constexpr char kMachine[] = "MemTotal:  2097152 kB\nMemFree:  10 kB\nMemAvailable:  1048576 kB\n";

TEST_F(MemoryLimitTest, WithoutAGroupIsTheMachines) {
  EXPECT_GT(AvailableMemoryBytes(), 0);
  EXPECT_GT(AvailableMemoryBytes(root_), 0) << "no files at all";
  Write("/proc/meminfo", kMachine);
  EXPECT_EQ(AvailableMemoryBytes(root_), 1024 * kMiB);
  Write("/proc/self/cgroup", "0::/user.slice\n");
  Write("/sys/fs/cgroup/user.slice/memory.max", "max\n");
  Write("/sys/fs/cgroup/user.slice/memory.current", "1048576\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 1024 * kMiB);
}

TEST_F(MemoryLimitTest, Version2TakesTheLeastOfTheGroupAndThoseAboveIt) {
  Write("/proc/meminfo", kMachine);
  Write("/proc/self/cgroup", "0::/pods/a\n");
  Write("/sys/fs/cgroup/pods/a/memory.max", "536870912\n");
  Write("/sys/fs/cgroup/pods/a/memory.current", "134217728\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 384 * kMiB);
  Write("/sys/fs/cgroup/pods/a/memory.stat", "anon 1\nfile 2\ninactive_file 33554432\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 416 * kMiB);
  Write("/sys/fs/cgroup/pods/memory.max", "268435456\n");
  Write("/sys/fs/cgroup/pods/memory.current", "209715200\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 56 * kMiB);
  Write("/sys/fs/cgroup/pods/memory.current", "300000000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 0);
}

TEST_F(MemoryLimitTest, AContainerSeesItsGroupAsTheRoot) {
  Write("/proc/meminfo", kMachine);
  Write("/sys/fs/cgroup/memory.max", "67108864\n");
  Write("/sys/fs/cgroup/memory.current", "0\n");
  for (const char* path : {"0::/\n", "0::/../../kubepods/x\n"}) {
    Write("/proc/self/cgroup", path);
    EXPECT_EQ(AvailableMemoryBytes(root_), 64 * kMiB) << path;
  }
}

TEST_F(MemoryLimitTest, Version1HasAMemoryTree) {
  Write("/proc/meminfo", kMachine);
  Write("/proc/self/cgroup", "12:cpu,cpuacct:/x\n7:memory:/docker/y\n0::/\n");
  // No limit is a huge number there.
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 1024 * kMiB);
  Write("/sys/fs/cgroup/memory/docker/y/memory.limit_in_bytes", "134217728\n");
  Write("/sys/fs/cgroup/memory/docker/y/memory.usage_in_bytes", "67108864\n");
  Write("/sys/fs/cgroup/memory/docker/y/memory.stat", "inactive_file 7\ntotal_inactive_file 1048576\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 65 * kMiB);
}

}  // namespace
}  // namespace ballast
