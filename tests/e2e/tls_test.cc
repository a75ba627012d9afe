// A cluster whose every gRPC connection is mutual TLS, through real processes.

#include <sys/wait.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/test_certificates.h"
#include "tests/cluster/process.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

class TlsTest : public ClusterTest {
 protected:
  static std::string Path(const std::string& name) { return ::testing::TempDir() + "/" + name; }

  // ballastctl's exit status; what it printed is in `text`.
  static int Ctl(const std::vector<std::string>& arguments, std::string& text) {
    std::vector<std::string> argv = {"/bin/sh", "-c", "exec \"$0\" \"$@\" >&2", "controller/ctl/ballastctl"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    static int runs = 0;
    const std::string log = Path(absl::StrCat("ctl", ++runs, ".log"));
    auto process = Process::Start(argv, log, {});
    EXPECT_TRUE(process.ok()) << process.status();
    const auto status = (*process)->Wait(absl::Minutes(1));
    EXPECT_TRUE(status.ok()) << status.status();
    text = TailOfFile(log);
    return status.ok() && WIFEXITED(*status) ? WEXITSTATUS(*status) : -1;
  }

  static std::vector<std::string> Flags(const TlsFiles& files) {
    return {"--tls-cert=" + files.certificate, "--tls-key=" + files.key, "--tls-ca=" + files.authorities};
  }
};

TEST_F(TlsTest, ServesThoseWithACertificateAndNobodyElse) {
  const TestAuthority ours("ours"), theirs("theirs");
  const auto cluster = Serving({.workers = 2, .slots_per_layer = 18, .tls = ours.Issue(Path("cluster"))});
  ASSERT_NE(cluster, nullptr);
  // A worker answers over TLS; its peers' data connections and its session with the controller are there.
  EXPECT_THAT(Digests(*cluster, "w0", SomePrompts(100)), Each(Not(SizeIs(0))));

  const std::string controller = "--controller=" + cluster->controller_address();
  std::vector<std::string> command = Flags(ours.Issue(Path("operator"), "DNS:operator"));
  command.insert(command.end(), {controller, "get", "workers"});
  std::string text;
  EXPECT_EQ(Ctl(command, text), 0) << text;
  EXPECT_THAT(text, AllOf(HasSubstr("w0"), HasSubstr("w1")));
  command.resize(4);
  command.insert(command.end(), {"generate", "--task=t", "--max-tokens=4", "Once upon"});
  EXPECT_EQ(Ctl(command, text), 0) << text;

  // What a certificate may do is in its organisation.
  const auto run_as = [&](const std::vector<std::string>& organisations, std::vector<std::string> arguments) {
    std::vector<std::string> argv = Flags(ours.Issue(Path("someone"), "DNS:someone", organisations));
    argv.push_back(controller);
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    return Ctl(argv, text);
  };
  EXPECT_EQ(run_as({"ballast:viewer"}, {"get", "workers"}), 0) << text;
  EXPECT_EQ(run_as({"ballast:viewer"}, {"pause"}), 1);
  EXPECT_THAT(text, HasSubstr("'peer' has role viewer, needed is one of: operator"));
  EXPECT_EQ(run_as({"ballast:worker"}, {"get", "workers"}), 1);
  EXPECT_THAT(text, HasSubstr("'peer' has role worker, needed is one of: viewer, operator"));
  EXPECT_EQ(run_as({}, {"get", "workers"}), 1);
  EXPECT_THAT(text, HasSubstr("'peer' has role none"));
  EXPECT_EQ(run_as({"ballast:operator"}, {"pause"}), 0) << text;

  EXPECT_EQ(Ctl({controller, "get", "workers"}, text), 1) << text;
  TlsFiles stranger = theirs.Issue(Path("stranger"));
  stranger.authorities = Path("cluster.ca");
  command = Flags(stranger);
  command.insert(command.end(), {controller, "get", "workers"});
  EXPECT_EQ(Ctl(command, text), 1) << text;
}

}  // namespace
}  // namespace ballast
