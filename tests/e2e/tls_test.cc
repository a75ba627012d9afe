// A cluster whose every gRPC connection is mutual TLS, through real processes.

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/test_certificates.h"
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
};

TEST_F(TlsTest, ServesThoseWithACertificateAndNobodyElse) {
  const TestAuthority ours("ours"), theirs("theirs");
  const auto cluster = Serving({.workers = 2, .slots_per_layer = 18, .tls = ours.Issue(Path("cluster"))});
  ASSERT_NE(cluster, nullptr);
  // A worker answers over TLS; its peers' data connections and its session with the controller are there.
  EXPECT_THAT(Digests(*cluster, "w0", SomePrompts(100)), Each(Not(SizeIs(0))));

  std::string text;
  const TlsFiles someone = ours.Issue(Path("operator"), "DNS:operator");
  EXPECT_EQ(cluster->CtlAs(someone, {"get", "workers"}, &text), 0) << text;
  EXPECT_THAT(text, AllOf(HasSubstr("w0"), HasSubstr("w1")));
  EXPECT_EQ(cluster->CtlAs(someone, {"generate", "--task=t", "--max-tokens=4", "Once upon"}, &text), 0) << text;

  // What a certificate may do is in its organisation.
  const auto run_as = [&](const std::vector<std::string>& organisations, const std::vector<std::string>& arguments) {
    return cluster->CtlAs(ours.Issue(Path("someone"), "DNS:someone", organisations), arguments, &text);
  };
  EXPECT_EQ(run_as({"ballast:viewer"}, {"get", "workers"}), 0) << text;
  EXPECT_EQ(run_as({"ballast:viewer"}, {"pause"}), 1);
  EXPECT_THAT(text, HasSubstr("'peer' has role viewer, needed is one of: operator"));
  EXPECT_EQ(run_as({"ballast:worker"}, {"get", "workers"}), 1);
  EXPECT_THAT(text, HasSubstr("'peer' has role worker, needed is one of: viewer, operator"));
  EXPECT_EQ(run_as({}, {"get", "workers"}), 1);
  EXPECT_THAT(text, HasSubstr("'peer' has role none"));
  EXPECT_EQ(run_as({"ballast:operator"}, {"pause"}), 0) << text;

  EXPECT_EQ(cluster->CtlAs({}, {"get", "workers"}, &text), 1) << text;
  TlsFiles stranger = theirs.Issue(Path("stranger"));
  stranger.authorities = Path("cluster.ca");
  EXPECT_EQ(cluster->CtlAs(stranger, {"get", "workers"}, &text), 1) << text;
}

}  // namespace
}  // namespace ballast
