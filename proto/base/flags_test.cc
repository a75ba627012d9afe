#include "proto/base/flags.h"

#include <cstdlib>
#include <fstream>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Result {
  std::optional<int> exit;
  std::string error;
  int port = 7070;
  std::vector<std::string> peers;
};

Result Parse(std::vector<std::string> args, const std::string& yaml) {
  const std::string path = std::string(std::getenv("TEST_TMPDIR")) + "/flags.yaml";
  std::ofstream(path) << yaml;
  CLI::App app("test", "daemon");
  Result result;
  app.add_option("--port", result.port, "port")->check(CLI::Range(0, 65535));
  app.add_option("--peer", result.peers, "peers");
  args.insert(args.begin(), "daemon");
  args.push_back("--config=" + path);
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  testing::internal::CaptureStderr();
  result.exit = ParseFlags(app, static_cast<int>(argv.size()), argv.data());
  result.error = testing::internal::GetCapturedStderr();
  return result;
}

TEST(ParseFlags, FileGivesWhatTheCommandLineLeavesOut) {
  const Result r = Parse({"--peer=x"}, "port: 9\npeer: [a, b]\n");
  EXPECT_EQ(r.exit, std::nullopt) << r.error;
  EXPECT_EQ(r.port, 9);
  EXPECT_THAT(r.peers, ElementsAre("x"));
}

TEST(Between, RefusesWhatIsNoNumberInRange) {
  const CLI::Validator check = Between(0.5, 2);
  EXPECT_EQ(check("0.5"), "");
  EXPECT_EQ(check("2"), "");
  for (const std::string text : {"0.4", "3", "nan", "inf", "-inf", "x", ""}) {
    EXPECT_THAT(check(text), HasSubstr("not in range 0.5 to 2")) << text;
  }
}

TEST(ParseFlags, NamesAnUnknownVerb) {
  CLI::App app("test", "ctl");
  app.add_subcommand("plan");
  app.require_subcommand(1);
  std::vector<std::string> args = {"ctl", "plam"};
  std::vector<char*> argv = {args[0].data(), args[1].data()};
  testing::internal::CaptureStderr();
  EXPECT_NE(ParseFlags(app, 2, argv.data()).value_or(0), 0);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("there is no verb 'plam'"));
}

TEST(ParseFlags, NamesAnUnknownOptionBeforeWhatIsMissing) {
  CLI::App app("test", "ctl");
  CLI::App* verb = app.add_subcommand("plan");
  std::string out;
  verb->add_option("--out", out)->required();
  app.require_subcommand(1);
  std::vector<std::string> args = {"ctl", "plan", "--uot"};
  std::vector<char*> argv = {args[0].data(), args[1].data(), args[2].data()};
  testing::internal::CaptureStderr();
  EXPECT_NE(ParseFlags(app, 3, argv.data()).value_or(0), 0);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("--uot"));
}

TEST(ParseFlags, ListsAndEmptyFiles) {
  EXPECT_THAT(Parse({}, "peer: [a, b]\n").peers, ElementsAre("a", "b"));
  EXPECT_EQ(Parse({}, "").exit, std::nullopt);
}

TEST(ParseFlags, ErrorsNameKeyAndLimit) {
  EXPECT_THAT(Parse({}, "port: 1\nprot: 2\n").error, HasSubstr(":2: unknown key 'prot'"));
  EXPECT_THAT(Parse({}, "port: 70000\n").error, HasSubstr("70000"));
  EXPECT_THAT(Parse({}, "port: {a: b}\n").error, HasSubstr("must be a value or a list"));
  EXPECT_THAT(Parse({}, "- a\n").error, HasSubstr("must be a map"));
  EXPECT_THAT(Parse({}, "a: [\n").error, HasSubstr("flags.yaml"));
  EXPECT_EQ(Parse({}, "a: 1\n").exit, 2);
  EXPECT_NE(Parse({"--prot=1"}, "").exit.value_or(0), 0);
}

}  // namespace
}  // namespace ballast
