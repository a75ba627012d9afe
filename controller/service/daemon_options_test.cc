#include "controller/service/daemon_options.h"

#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

std::optional<int> Parse(std::vector<std::string> args, DaemonOptions& options) {
  args.insert(args.begin(), "ballast-controller");
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  return ParseDaemonOptions(static_cast<int>(argv.size()), argv.data(), options);
}

TEST(ParseGroup, TakesEveryKey) {
  const auto group = ParseGroup("name=demo,size=4,role=decode,mode=approve,policy=eplb,combine=exact");
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(group->name, "demo");
  EXPECT_EQ(group->size, 4);
  EXPECT_EQ(group->role, v1::GROUP_ROLE_DECODE);
  EXPECT_EQ(group->mode, v1::GROUP_MODE_APPROVE);
  EXPECT_EQ(group->combine, v1::COMBINE_MODE_EXACT);
  EXPECT_EQ(ParseGroup("name=demo,size=1")->mode, v1::GROUP_MODE_AUTO);
}

TEST(ParseGroup, SaysWhatIsWrong) {
  const auto error = [](const std::string& text) { return std::string(ParseGroup(text).status().message()); };
  EXPECT_THAT(error("size=4"), HasSubstr("name"));
  EXPECT_THAT(error("name=a"), HasSubstr("size"));
  EXPECT_THAT(error("name=a,size=0"), HasSubstr("size: '0' is not a number from 1 to 4096"));
  EXPECT_THAT(error("name=A/b,size=1"), HasSubstr("name: 'A/b'"));
  EXPECT_THAT(error("name=a,size=1,mode=later"), HasSubstr("mode: 'later' is not one of approve, auto, observe"));
  EXPECT_THAT(error("name=a,size=1,policy=magic"), HasSubstr("policy: 'magic' is none of cost-aware, eplb"));
  EXPECT_THAT(error("name=a,size=1,colour=red"), HasSubstr("key: 'colour'"));
  EXPECT_THAT(error("name=a,size=1,size=2"), HasSubstr("size"));
  EXPECT_THAT(error("name"), HasSubstr("KEY=VALUE"));
}

TEST(CheckListen, StaysOnThisMachineUnlessToldSo) {
  for (const char* address : {"127.0.0.1:0", "127.1.2.3:70", "localhost:7070", "[::1]:1"}) {
    EXPECT_TRUE(CheckListen("listen", address, false).ok()) << address;
  }
  for (const char* address : {"0.0.0.0:7070", "[::]:7070", "10.0.0.1:7070", "host:1"}) {
    const absl::Status status = CheckListen("listen", address, false);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << address;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--allow-insecure"));
    EXPECT_TRUE(CheckListen("listen", address, true).ok()) << address;
  }
  for (const char* address : {"", "7070", ":7070", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x"}) {
    EXPECT_EQ(CheckListen("listen", address, true).code(), absl::StatusCode::kInvalidArgument) << address;
  }
}

TEST(ParseDaemonOptions, CommandLineAndFile) {
  const std::string path = ::testing::TempDir() + "/controller.yaml";
  std::ofstream(path) << "group:\n  - name=a,size=2\n  - name=b,size=1\nlease: 3s\nmin-gain: 0.1\nlog-format: json\n";
  DaemonOptions options;
  EXPECT_EQ(Parse({"--config", path, "--lease=6s"}, options), std::nullopt);
  ASSERT_EQ(options.groups.size(), 2u);
  EXPECT_EQ(options.groups[1].name, "b");
  EXPECT_EQ(options.timing.lease, absl::Seconds(6));
  EXPECT_EQ(options.gate.min_gain, 0.1);
  EXPECT_EQ(options.log_format, LogFormat::kJson);
  EXPECT_EQ(options.load.bucket, absl::Seconds(10));
}

TEST(ParseDaemonOptions, TlsMayLeaveTheMachine) {
  DaemonOptions options;
  EXPECT_EQ(
      Parse({"--group=name=a,size=1", "--listen=0.0.0.0:0", "--tls-cert=c", "--tls-key=k", "--tls-ca=a"}, options),
      std::nullopt);
  EXPECT_EQ(options.tls.key, "k");
}

TEST(ParseDaemonOptions, TheConsoleIsOnUnlessItIsTurnedOff) {
  DaemonOptions options;
  EXPECT_EQ(Parse({"--engines-only"}, options), std::nullopt);
  EXPECT_EQ(options.console_listen, "127.0.0.1:7072");
  EXPECT_EQ(Parse({"--engines-only", "--console-listen=none"}, options), std::nullopt);
  EXPECT_EQ(options.console_listen, "");
  EXPECT_NE(Parse({"--engines-only", "--console-listen=0.0.0.0:0"}, options).value_or(0), 0);
  EXPECT_EQ(Parse({"--engines-only", "--console-listen=0.0.0.0:0", "--allow-insecure"}, options), std::nullopt);
}

TEST(ParseDaemonOptions, RefusesNonsense) {
  DaemonOptions options;
  EXPECT_NE(Parse({}, options).value_or(0), 0);
  EXPECT_EQ(Parse({"--engines-only"}, options), std::nullopt);
  EXPECT_NE(Parse({"--group=name=a,size=1", "--lease=tomorrow"}, options).value_or(0), 0);
  EXPECT_NE(Parse({"--group=name=a,size=1", "--lease=1s", "--heartbeat-interval=1s"}, options).value_or(0), 0);
  EXPECT_NE(Parse({"--group=name=a,size=1", "--listen=0.0.0.0:0"}, options).value_or(0), 0);
  EXPECT_NE(Parse({"--group=name=a,size=1", "--min-gain=2"}, options).value_or(0), 0);
  EXPECT_EQ(Parse({"--help"}, options), 0);
}

}  // namespace
}  // namespace ballast
