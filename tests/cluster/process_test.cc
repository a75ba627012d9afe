#include "tests/cluster/process.h"

#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

std::string LogPath() { return std::string(std::getenv("TEST_TMPDIR")) + "/process.log"; }

TEST(Process, ReadyLineGivesTheAddresses) {
  auto p = Process::Start({"/bin/sh", "-c", "echo starting; echo ready grpc=h:1 metrics=h:2; exec cat"}, LogPath());
  ASSERT_TRUE(p.ok()) << p.status();
  const auto ready = (*p)->AwaitReady(absl::Seconds(10));
  ASSERT_TRUE(ready.ok()) << ready.status();
  EXPECT_EQ(ready->at("grpc"), "h:1");
  EXPECT_EQ(ready->at("metrics"), "h:2");
}

TEST(Process, OneThatEndsEarlyShowsItsLog) {
  auto p = Process::Start({"/bin/sh", "-c", "echo no such model >&2; exit 3"}, LogPath());
  ASSERT_TRUE(p.ok()) << p.status();
  const auto ready = (*p)->AwaitReady(absl::Seconds(10));
  EXPECT_EQ(ready.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(ready.status().message()), HasSubstr("no such model"));
  const auto status = (*p)->Wait(absl::Seconds(10));
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(WEXITSTATUS(*status), 3);
}

TEST(Process, SignalsAndEnvironment) {
  auto p = Process::Start({"/bin/sh", "-c", "echo ready v=$V; exec cat"}, LogPath(), {{"V", "7"}});
  ASSERT_TRUE(p.ok()) << p.status();
  EXPECT_EQ((*p)->AwaitReady(absl::Seconds(10))->at("v"), "7");
  EXPECT_TRUE((*p)->running());
  (*p)->Signal(SIGKILL);
  const auto status = (*p)->Wait(absl::Seconds(10));
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(WTERMSIG(*status), SIGKILL);
  EXPECT_FALSE((*p)->running());
}

}  // namespace
}  // namespace ballast
