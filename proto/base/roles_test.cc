#include "proto/base/roles.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/test_certificates.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Read(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// What the certificate that `authority` makes with these organisations says of its holder.
Caller CallerWith(const std::vector<std::string>& organisations) {
  static const TestAuthority authority("ours");
  const std::string prefix = std::string(std::getenv("TEST_TMPDIR")) + "/caller";
  return CallerFromPem(Read(authority.Issue(prefix, "DNS:x", organisations).certificate));
}

TEST(Roles, EveryMethodOfEveryServiceIsInTheTable) {
  std::set<std::string> methods;
  for (const auto& entry : std::filesystem::directory_iterator("proto/ballast/v1")) {
    const std::string text = Read(entry.path());
    static const std::regex line("^(?:service (\\w+)| +rpc (\\w+)\\()", std::regex::multiline);
    std::string service;
    for (std::sregex_iterator at(text.begin(), text.end(), line), end; at != end; ++at) {
      if ((*at)[1].matched) service = (*at)[1];
      if ((*at)[2].matched) methods.insert("/ballast.v1." + service + "/" + std::string((*at)[2]));
    }
  }
  std::set<std::string> rows;
  for (const MethodRoles& row : MethodTable()) {
    rows.emplace(row.method);
    EXPECT_FALSE(row.roles.empty()) << row.method;
  }
  EXPECT_GE(methods.size(), 25u);
  EXPECT_EQ(rows, methods);
  EXPECT_TRUE(std::is_sorted(MethodTable().begin(), MethodTable().end(),
                             [](const MethodRoles& a, const MethodRoles& b) { return a.method < b.method; }));
}

TEST(Roles, WhoMayCallWhat) {
  const Roles viewer = Role::kViewer, worker = Role::kWorker, all_of_them = viewer | worker | Role::kOperator;
  const struct {
    Roles roles;
    const char* method;
    bool may;
  } cases[] = {
      {viewer, "/ballast.v1.PlanService/GetPlan", true},
      {viewer, "/ballast.v1.PlanService/ApprovePlan", false},
      {viewer, "/ballast.v1.GroupService/Pause", false},
      {viewer, "/ballast.v1.Inference/Generate", true},
      {viewer, "/ballast.v1.WorkerSession/Connect", false},
      {viewer, "/ballast.v1.TelemetryService/ReportLoad", false},
      {worker, "/ballast.v1.WorkerSession/Connect", true},
      {worker, "/ballast.v1.TelemetryService/ReportLoad", true},
      {worker, "/ballast.v1.GroupService/GetGroup", false},
      {worker, "/ballast.v1.PlanService/ApprovePlan", false},
      {Role::kOperator, "/ballast.v1.PlanService/ApprovePlan", true},
      {Role::kOperator, "/ballast.v1.GroupService/ListGroups", true},
      {Role::kOperator, "/ballast.v1.WorkerSession/Connect", false},
      {viewer | worker, "/ballast.v1.WorkerSession/Connect", true},
      {{}, "/ballast.v1.GroupService/ListGroups", false},
      {{}, "/grpc.health.v1.Health/Check", true},
      {{}, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", true},
      {{}, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", true},
      {all_of_them, "/ballast.v1.PlanService/None", false},
      {all_of_them, "/ballast.v1.PlanService/GetPlanX", false},
      {all_of_them, "", false},
  };
  for (const auto& c : cases) {
    const absl::Status status = CheckRole({"someone", c.roles}, c.method);
    EXPECT_EQ(status.code(), c.may ? absl::StatusCode::kOk : absl::StatusCode::kPermissionDenied)
        << c.roles.ToString() << " " << c.method << ": " << status;
  }
  EXPECT_THAT(std::string(CheckRole({"ann", viewer | worker}, "/ballast.v1.PlanService/Rollback").message()),
              AllOf(HasSubstr("PlanService/Rollback: 'ann' has role viewer, worker"), HasSubstr("one of: operator")));
}

TEST(Roles, AreOrganisationsOfTheCertificate) {
  EXPECT_EQ(CallerWith({}).roles.ToString(), "none");
  EXPECT_EQ(CallerWith({"ballast:viewer"}).roles.ToString(), "viewer");
  EXPECT_EQ(CallerWith({"Acme", "ballast:worker", "ballast:operator"}).roles.ToString(), "worker, operator");
  // Only the whole organisation counts.
  EXPECT_EQ(CallerWith({"ballast:operators", "xballast:operator", "operator", "Ballast:Operator"}).roles.ToString(),
            "none");
  EXPECT_EQ(CallerWith({"x, O=ballast:operator"}).roles.ToString(), "none");
  EXPECT_EQ(CallerWith({"ballast:viewer"}).name, "peer");
  EXPECT_EQ(CallerFromPem("nonsense").roles.ToString(), "none");
}

}  // namespace
}  // namespace ballast
