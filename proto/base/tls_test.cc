#include "proto/base/tls.h"

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/test_certificates.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Path(const std::string& name) { return std::string(std::getenv("TEST_TMPDIR")) + "/" + name; }

// A server behind `security` that has no method: what it answers is Unimplemented.
class TestServer {
 public:
  explicit TestServer(const TransportSecurity& security) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", security.ServerCredentials(), &port_);
    builder.RegisterCallbackGenericService(&service_);
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  int port_ = 0;
  grpc::CallbackGenericService service_;
  std::unique_ptr<grpc::Server> server_;
};

// What a call says: Unimplemented once the server has let it in.
grpc::StatusCode Call(const std::shared_ptr<grpc::Channel>& channel,
                      const std::string& method = "/ballast.v1.PlanService/ApprovePlan") {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  grpc::CompletionQueue queue;
  grpc::ByteBuffer request, response;
  const auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&response, &status, &queue);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  return status.error_code();
}

TransportSecurity Make(const TlsFiles& files) {
  absl::StatusOr<TransportSecurity> made = TransportSecurity::Create(files, absl::Now());
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

TEST(TransportSecurity, LetsInWhoShowsACertificateOfTheAuthorities) {
  const TestAuthority ours("ours"), theirs("theirs");
  const TransportSecurity server_side = Make(ours.Issue(Path("server")));
  const TestServer server(server_side);
  EXPECT_EQ(Call(Make(ours.Issue(Path("client"), "DNS:someone")).Connect(server.address())),
            grpc::StatusCode::UNIMPLEMENTED);

  // Another authority's certificate, though it trusts the server's.
  TlsFiles stranger = theirs.Issue(Path("stranger"));
  stranger.authorities = Path("server.ca");
  EXPECT_EQ(Call(Make(stranger).Connect(server.address())), grpc::StatusCode::UNAVAILABLE);
  // None, though it speaks TLS.
  std::ifstream file(Path("server.ca"));
  grpc::SslCredentialsOptions no_certificate;
  no_certificate.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
  EXPECT_EQ(Call(grpc::CreateChannel(server.address(), grpc::SslCredentials(no_certificate))),
            grpc::StatusCode::UNAVAILABLE);
  // Without TLS.
  EXPECT_EQ(Call(TransportSecurity().Connect(server.address())), grpc::StatusCode::UNAVAILABLE);
}

TEST(TransportSecurity, LetsACallerDoWhatItsRolesMay) {
  const TestAuthority ours("ours");
  const TestServer server(Make(ours.Issue(Path("server"))));
  const auto connect = [&](const std::vector<std::string>& organisations) {
    return Make(ours.Issue(Path("client"), "DNS:someone", organisations)).Connect(server.address());
  };
  const auto viewer = connect({"ballast:viewer"}), nobody = connect({});
  EXPECT_EQ(Call(viewer), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(Call(viewer, "/ballast.v1.PlanService/GetPlan"), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(Call(nobody, "/ballast.v1.PlanService/GetPlan"), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(Call(nobody, "/grpc.health.v1.Health/Check"), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(Call(connect({"ballast:operator"})), grpc::StatusCode::UNIMPLEMENTED);
}

TEST(TransportSecurity, RefusesAServerThatIsNotWhoItShouldBe) {
  const TestAuthority ours("ours"), theirs("theirs");
  const TransportSecurity client = Make(ours.Issue(Path("client")));
  const TestServer other_name(Make(ours.Issue(Path("server"), "DNS:controller.example")));
  EXPECT_EQ(Call(client.Connect(other_name.address())), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Call(client.Connect(other_name.address(), {}, "controller.example")), grpc::StatusCode::UNIMPLEMENTED);

  TlsFiles files = theirs.Issue(Path("their_server"));
  files.authorities = Path("client.ca");
  const TestServer other_authority(Make(files));
  EXPECT_EQ(Call(client.Connect(other_authority.address())), grpc::StatusCode::UNAVAILABLE);
}

TEST(TransportSecurity, WithoutFilesThereIsNoTls) {
  const TransportSecurity none = Make({});
  EXPECT_FALSE(none.tls());
  const TestServer server(none);
  EXPECT_EQ(Call(none.Connect(server.address())), grpc::StatusCode::UNIMPLEMENTED);
}

TEST(TransportSecurity, SaysWhatIsWrongWithFiles) {
  const TestAuthority authority("ours");
  const TlsFiles good = authority.Issue(Path("good"));
  const TlsFiles other = authority.Issue(Path("other"));
  const std::string text = Path("text");
  std::ofstream(text) << "certificate\n";
  const absl::Time now = absl::Now();
  const TlsFiles old = authority.Issue(Path("old"), "DNS:x", {}, now - absl::Hours(48), now - absl::Hours(24));
  const TlsFiles early = authority.Issue(Path("early"), "DNS:x", {}, now + absl::Hours(24), now + absl::Hours(48));
  const struct {
    TlsFiles files;
    absl::StatusCode code;
    std::string option, says;
  } cases[] = {
      {{good.certificate, "", good.authorities}, absl::StatusCode::kInvalidArgument, "--tls-key", "is missing"},
      {{"", good.key, ""}, absl::StatusCode::kInvalidArgument, "--tls-cert", "is missing"},
      {{good.certificate, good.key, ""}, absl::StatusCode::kInvalidArgument, "--tls-ca", "is missing"},
      {{Path("none"), good.key, good.authorities}, absl::StatusCode::kNotFound, "--tls-cert", Path("none")},
      {{text, good.key, good.authorities}, absl::StatusCode::kInvalidArgument, "--tls-cert", "not a PEM certificate"},
      {{good.certificate, text, good.authorities}, absl::StatusCode::kInvalidArgument, "--tls-key", "not a PEM"},
      {{good.certificate, good.key, text}, absl::StatusCode::kInvalidArgument, "--tls-ca", "no PEM certificates"},
      {{good.certificate, other.key, good.authorities},
       absl::StatusCode::kInvalidArgument,
       "--tls-key",
       "not the key of the certificate"},
      {old, absl::StatusCode::kFailedPrecondition, "--tls-cert", "expired at"},
      {early, absl::StatusCode::kFailedPrecondition, "--tls-cert", "not valid before"},
  };
  for (const auto& c : cases) {
    const absl::Status status = TransportSecurity::Create(c.files, now).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(c.option), HasSubstr(c.says)));
  }
}

}  // namespace
}  // namespace ballast
