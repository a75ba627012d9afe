#include "controller/console/console.h"

#include <netinet/in.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "controller/console/console_api.h"
#include "controller/console/fake_services.h"
#include "controller/console/http_server.h"
#include "controller/console/service_call.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/test_certificates.h"

namespace ballast {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kApprove[] = "/api/call/ballast.v1.PlanService/ApprovePlan";

HttpRequest Get(const std::string& path, const std::map<std::string, std::string>& query = {}) {
  return {
      .method = "GET", .path = path, .query = query, .headers = {{"host", "localhost:7072"}}, .body = "", .caller = {}};
}

// As the console's own page sends it.
HttpRequest Post(const std::string& path, const std::string& body) {
  return {.method = "POST",
          .path = path,
          .query = {},
          .headers = {{"host", "localhost:7072"},
                      {"origin", "http://localhost:7072"},
                      {"sec-fetch-site", "same-origin"},
                      {"content-type", "application/json"},
                      {"x-ballast-console", "1"}},
          .body = body,
          .caller = {}};
}

std::string HeaderOf(const HttpResponse& response, const std::string& name) {
  for (const auto& [key, value] : response.headers) {
    if (key == name) return value;
  }
  return "";
}

class ConsoleTest : public ::testing::Test {
 protected:
  FakeServices services_{{.layers = 3, .experts = 8, .gpus = 4}};
  ConsoleApi api_{ConsoleAccess::kLoopback, services_.Channel(), Clock::Real()};
};

TEST_F(ConsoleTest, ServesItsPagesUnderAStrictPolicy) {
  const HttpResponse page = api_.Handle(Get("/"));
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.body, HasSubstr("<title>Ballast</title>"));
  EXPECT_EQ(HeaderOf(page, "Content-Type"), "text/html; charset=utf-8");
  EXPECT_THAT(HeaderOf(page, "Content-Security-Policy"), HasSubstr("default-src 'none'; script-src 'self'"));
  EXPECT_THAT(HeaderOf(page, "Content-Security-Policy"), HasSubstr("frame-ancestors 'none'"));
  EXPECT_EQ(api_.Handle(Get("/console.js")).status, 200);
  EXPECT_EQ(api_.Handle(Get("/../etc/passwd")).status, 404);
  EXPECT_EQ(api_.Handle(Get("/api/none")).status, 404);
}

TEST_F(ConsoleTest, AnswersViewsAndSaysWhatIsWrongWithAQuestion) {
  const HttpResponse overview = api_.Handle(Get("/api/overview", {{"group", "big"}}));
  ASSERT_EQ(overview.status, 200) << overview.body;
  EXPECT_EQ(json::parse(overview.body)["workers"].size(), 4u);
  EXPECT_EQ(json::parse(api_.Handle(Get("/api/groups")).body)["groups"][0]["name"], "big");
  const json layer = json::parse(api_.Handle(Get("/api/layer", {{"group", "big"}, {"layer", "2"}})).body);
  EXPECT_EQ(layer["tokens"].size(), 8u);
  const json plan = json::parse(api_.Handle(Get("/api/plan", {{"id", "big-1"}})).body);
  EXPECT_EQ(plan["plan"]["state"], "PLAN_STATE_PROPOSED");
  EXPECT_TRUE(plan.contains("after"));
  const json engines = json::parse(api_.Handle(Get("/api/engines")).body)["engines"];
  ASSERT_EQ(engines.size(), 2u) << "every page";
  EXPECT_EQ(engines[0]["name"], "sgl");
  EXPECT_EQ(engines[1]["name"], "trt");

  EXPECT_EQ(api_.Handle(Get("/api/history", {{"group", "big"}})).status, 404) << "nothing has been sampled";
  api_.Sample();
  EXPECT_EQ(json::parse(api_.Handle(Get("/api/history", {{"group", "big"}})).body)["epoch"], json::array({3}));

  const struct {
    HttpRequest request;
    int status;
    const char* says;
  } wrong[] = {
      {Get("/api/overview"), 400, "group: is missing"},
      {Get("/api/overview", {{"group", "small"}}), 404, "no such group"},
      {Get("/api/layer", {{"group", "big"}, {"layer", "3"}}), 400, "layer: 3 is not below 3"},
      {Get("/api/layer", {{"group", "big"}, {"layer", "-1"}}), 400, "layer: '-1' is no number"},
      {Get("/api/layer", {{"group", "big"}, {"layer", "99999999999"}}), 400, "is not below 3"},
      {Get("/api/history", {{"group", "big"}, {"after_ms", "x"}}), 400, "after_ms: 'x'"},
      {Get("/api/plan", {{"id", "big-7"}}), 404, "no such plan"},
      {Post(kApprove, "{\"id\": 7, \"more\": 1}"), 400, "ApprovePlanRequest: "},
      {Post(kApprove, "{"), 400, "ApprovePlanRequest: "},
      {Post("/api/call/ballast.v1.GroupService/WatchGroup", "{}"), 404, "no such unary method"},
      {Post("/api/call/grpc.health.v1.Health/Check", "{}"), 404, "no such unary method"},
      {Post("/api/call/ballast.v1.WorkerSession/Connect", "{}"), 403, "needed is one of: worker"},
      {Post("/api/overview", "{}"), 404, "nothing to call"},
  };
  for (const auto& c : wrong) {
    const HttpResponse answer = api_.Handle(c.request);
    EXPECT_EQ(answer.status, c.status) << answer.body;
    EXPECT_THAT(answer.body, HasSubstr(c.says)) << c.request.path;
  }
  HttpRequest put = Get("/");
  put.method = "PUT";
  EXPECT_EQ(api_.Handle(put).status, 405);
  EXPECT_THAT(services_.calls(), IsEmpty());
}

TEST_F(ConsoleTest, OtherSitesPagesDoNothing) {
  const auto with = [](const std::string& header, const std::string& value) {
    HttpRequest request = Post(kApprove, "{\"id\": \"big-1\"}");
    if (value.empty()) {
      request.headers.erase(header);
    } else {
      request.headers[header] = value;
    }
    return request;
  };
  for (const HttpRequest& forged :
       {with("x-ballast-console", ""), with("origin", "http://evil.example"), with("origin", "https://localhost:7072"),
        with("origin", "null"), with("origin", "http://localhost:1"), with("sec-fetch-site", "cross-site"),
        with("sec-fetch-site", "same-site"), with("content-type", "text/plain"), with("content-type", ""),
        with("host", "evil.example"), with("host", "localhost.evil.example:7072"), with("host", "")}) {
    EXPECT_EQ(api_.Handle(forged).status, 403);
  }
  EXPECT_THAT(services_.calls(), IsEmpty());
  // A name that leads here, but is not this machine's: the page there may not even read.
  HttpRequest rebound = Get("/api/groups");
  for (const char* host :
       {"evil.example:7072", "evil.example", "10.0.0.1:7072", "[::2]:7072", "127.evil.example:7072"}) {
    rebound.headers["host"] = host;
    EXPECT_EQ(api_.Handle(rebound).status, 403) << host;
  }
  for (const char* host : {"localhost", "127.0.0.1:9999", "[::1]:7072", "LOCALHOST:1"}) {
    rebound.headers["host"] = host;
    EXPECT_EQ(api_.Handle(rebound).status, 200) << host;
  }
  EXPECT_EQ(api_.Handle(with("origin", "")).status, 200) << "no browser: there is no page to misuse";
  EXPECT_THAT(services_.calls(), ElementsAre("ApprovePlan big-1"));
}

TEST_F(ConsoleTest, RolesComeFromTheCertificateAndPlansKeepTheName) {
  ConsoleApi api(ConsoleAccess::kTls, services_.Channel(), Clock::Real());
  const auto as = [&](Roles roles, HttpRequest request) {
    request.headers["host"] = "controller.example:7072";
    if (request.method == "POST") request.headers["origin"] = "https://controller.example:7072";
    request.caller = {.name = "Jörg", .roles = roles};
    return api.Handle(request);
  };
  const HttpRequest approve = Post(kApprove, "{\"id\": \"big-1\"}");
  EXPECT_EQ(as(Role::kViewer, Get("/api/groups")).status, 200);
  const HttpResponse refused = as(Role::kViewer, approve);
  EXPECT_EQ(refused.status, 403);
  EXPECT_THAT(refused.body, HasSubstr("'Jörg' has role viewer, needed is one of: operator"));
  EXPECT_EQ(as(Role::kWorker, Get("/api/groups")).status, 403);
  EXPECT_EQ(as({}, Get("/api/overview", {{"group", "big"}})).status, 403);
  EXPECT_EQ(as({}, Get("/api/engines")).status, 403);
  EXPECT_EQ(as({}, approve).status, 403);
  EXPECT_THAT(services_.calls(), IsEmpty());
  EXPECT_FALSE(json::parse(as(Role::kViewer, Get("/api/session")).body)["operates"]);

  EXPECT_EQ(as(Role::kOperator, approve).status, 200);
  EXPECT_THAT(services_.calls(), ElementsAre("ApprovePlan big-1 by Jörg"));
  const HttpResponse again = as(Role::kOperator, approve);
  EXPECT_EQ(again.status, 409);
  EXPECT_EQ(json::parse(again.body)["error"]["code"], "FAILED_PRECONDITION");
}

TEST_F(ConsoleTest, PlainBeyondLoopbackItOnlyReads) {
  ConsoleApi api(ConsoleAccess::kOpen, services_.Channel(), Clock::Real());
  HttpRequest approve = Post(kApprove, "{\"id\": \"big-1\"}");
  EXPECT_EQ(api.Handle(approve).status, 403);
  HttpRequest read = Get("/api/groups");
  read.headers["host"] = "10.0.0.1:7072";
  EXPECT_EQ(api.Handle(read).status, 200);
  const json session = json::parse(api.Handle(Get("/api/session")).body);
  EXPECT_FALSE(session["operates"]);
  EXPECT_THAT(session["note"].get<std::string>(), HasSubstr("without TLS nobody is known"));
  EXPECT_THAT(services_.calls(), IsEmpty());
}

TEST_F(ConsoleTest, OnlyThisProcessSpeaksForOthers) {
  const auto channel = grpc::CreateChannel(services_.address(), grpc::InsecureChannelCredentials());
  EXPECT_TRUE(CallByName(channel, "/ballast.v1.GroupService/Pause", "", "ann", absl::Minutes(1)).ok());
  EXPECT_TRUE(CallByName(services_.Channel(), "/ballast.v1.GroupService/Pause", "", "ann", absl::Minutes(1)).ok());
  EXPECT_THAT(services_.calls(), ElementsAre("Pause", "Pause by ann"));
}

TEST(HttpServer, ParsesQueries) {
  EXPECT_EQ(ParseQuery("a=1&b=%2Fx+y&c&a=2&d=%zz%4"),
            (std::map<std::string, std::string>{{"a", "2"}, {"b", "/x y"}, {"c", ""}, {"d", "%zz%4"}}));
}

// Sends `text` to this machine's `port` and reads until the server closes.
std::string Talk(int port, const std::string& text) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  // The server may close before all is sent.
  send(fd, text.data(), text.size(), MSG_NOSIGNAL);
  shutdown(fd, SHUT_WR);
  std::string out;
  char buffer[4096];
  for (ssize_t n = 0; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) out.append(buffer, static_cast<size_t>(n));
  close(fd);
  return out;
}

TEST(HttpServer, AnswersOneRequestAfterAnotherAndClosesOnNonsense) {
  const auto server = HttpServer::Start("127.0.0.1:0", {}, [](const HttpRequest& request) {
    return HttpResponse{.status = 200,
                        .headers = {{"X-Echo", request.Header("x-word")}},
                        .body = absl::StrCat(request.method, " ", request.path, " ", request.body)};
  });
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  const std::string two = Talk(port,
                               "POST /a?x=1 HTTP/1.1\r\nHost: h\r\nX-Word: first\r\nContent-Length: 3\r\n\r\nabc"
                               "HEAD /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(two, HasSubstr("X-Echo: first"));
  EXPECT_THAT(two, HasSubstr("POST /a abc"));
  EXPECT_THAT(two, HasSubstr("Content-Length: 8\r\n"));
  EXPECT_EQ(two.find("HEAD /b"), std::string::npos) << "HEAD has no body";
  EXPECT_EQ(Talk(port, "nonsense\r\n\r\n"), "");
  EXPECT_EQ(Talk(port, absl::StrCat("GET /", std::string(100'000, 'a'), " HTTP/1.1\r\n\r\n")), "");
  EXPECT_EQ(Talk(port, "POST / HTTP/1.1\r\nContent-Length: 2000000\r\n\r\nx"), "");
  EXPECT_EQ(HttpServer::Start(absl::StrCat("127.0.0.1:", port), {}, nullptr).status().code(),
            absl::StatusCode::kUnavailable);
}

// A connection over TLS to this machine's `port`.
class TlsConnection {
 public:
  TlsConnection(int port, const TlsFiles& files)
      : context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free), ssl_(nullptr, SSL_free) {
    SSL_CTX_use_certificate_chain_file(context_.get(), files.certificate.c_str());
    SSL_CTX_use_PrivateKey_file(context_.get(), files.key.c_str(), SSL_FILETYPE_PEM);
    SSL_CTX_load_verify_locations(context_.get(), files.authorities.c_str(), nullptr);
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    ssl_.reset(SSL_new(context_.get()));
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    SSL_set_fd(ssl_.get(), fd_);
    open_ = SSL_connect(ssl_.get()) == 1;
  }
  ~TlsConnection() { close(fd_); }

  // The beginning of the answer; empty: the server does not talk to us.
  std::string Ask() {
    constexpr std::string_view kRequest = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    char answer[1024] = {};
    if (!open_ || SSL_write(ssl_.get(), kRequest.data(), kRequest.size()) <= 0) return "";
    const int size = SSL_read(ssl_.get(), answer, sizeof(answer));
    return size > 0 ? std::string(answer, static_cast<size_t>(size)) : "";
  }

  // Of the server's certificate; TestAuthority gives each its own.
  int64_t serial() const {
    X509* const certificate = SSL_get0_peer_certificate(ssl_.get());
    return certificate == nullptr ? 0 : ASN1_INTEGER_get(X509_get0_serialNumber(certificate));
  }

 private:
  const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context_;
  std::unique_ptr<SSL, void (*)(SSL*)> ssl_;
  int fd_ = -1;
  bool open_ = false;
};

TEST(HttpServer, ReplacedTlsFilesHoldForTheConnectionsThatFollow) {
  const std::string folder = ::testing::TempDir() + "replaced_tls/";
  std::filesystem::create_directories(folder);
  const TestAuthority first("first"), second("second");
  const TlsFiles files = first.Issue(folder + "server");
  const TlsFiles client_of_first = first.Issue(folder + "client-1"),
                 client_of_second = second.Issue(folder + "client-2");
  // As whoever renews certificates does it: a file at once.
  const auto replace = [&](const TlsFiles& next) {
    std::filesystem::rename(next.certificate, files.certificate);
    std::filesystem::rename(next.key, files.key);
    std::filesystem::rename(next.authorities, files.authorities);
  };
  const auto server = HttpServer::Start("127.0.0.1:0", files, [](const HttpRequest& request) {
    return HttpResponse{.status = 200, .headers = {}, .body = request.path};
  });
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  TlsConnection before(port, client_of_first);
  EXPECT_THAT(before.Ask(), HasSubstr("200 OK"));

  replace(first.Issue(folder + "next"));
  TlsConnection renewed(port, client_of_first);
  EXPECT_THAT(renewed.Ask(), HasSubstr("200 OK"));
  EXPECT_NE(renewed.serial(), before.serial());
  EXPECT_THAT(before.Ask(), HasSubstr("200 OK")) << "a connection goes on";

  // Half of a replacement is not used: the certificate and the key do not belong together.
  const TlsFiles half = first.Issue(folder + "half");
  std::filesystem::rename(half.certificate, files.certificate);
  TlsConnection meanwhile(port, client_of_first);
  EXPECT_THAT(meanwhile.Ask(), HasSubstr("200 OK"));
  EXPECT_EQ(meanwhile.serial(), renewed.serial());
  std::filesystem::rename(half.key, files.key);
  TlsConnection whole(port, client_of_first);
  EXPECT_THAT(whole.Ask(), HasSubstr("200 OK"));
  EXPECT_NE(whole.serial(), renewed.serial());

  // The authorities are replaced, too.
  EXPECT_EQ(TlsConnection(port, client_of_second).Ask(), "");
  replace(second.Issue(folder + "other"));
  EXPECT_THAT(TlsConnection(port, client_of_second).Ask(), HasSubstr("200 OK"));
  EXPECT_EQ(TlsConnection(port, client_of_first).Ask(), "");
}

TEST(Console, ServesUntilItGoes) {
  FakeServices services({});
  const auto console = Console::Start("127.0.0.1:0", {}, true, services.Channel(), Clock::Real());
  ASSERT_TRUE(console.ok()) << console.status();
  EXPECT_THAT(Talk((*console)->port(), "GET /api/groups HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
              HasSubstr("HTTP/1.1 200 OK"));
}

}  // namespace
}  // namespace ballast
