// A controller and four workers under a load that is not level, mode approve: for tests of the console. Prints "ready
// console=HOST:PORT plan=ID" once a plan waits, and serves until its standard input ends.
//
// With tls as an argument: two workers and no load, mutual TLS, and certificates for browsers in the folder that
// follows, NAME.crt and NAME.key for NAME in operator, viewer and nobody, and ca.crt.
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/check.h"
#include "proto/base/clock.h"
#include "proto/base/test_certificates.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/load.h"

namespace ballast {
namespace {

constexpr int kSlots = 66;

std::string WorkerName(int i) { return absl::StrCat("gpu-", i); }

// Sends prompts until the controller finds a plan that pays.
std::string AwaitPlan(Cluster& cluster, int workers) {
  auto prompts = ReadPrompts("testdata/prompts.jsonl");
  BALLAST_CHECK(prompts.ok()) << prompts.status();
  std::map<std::string, std::shared_ptr<v1::Inference::Stub>> stubs;
  for (int i = 0; i < workers; ++i) stubs[WorkerName(i)] = cluster.inference(WorkerName(i));
  LoadGenerator load(*std::move(prompts), std::move(stubs), {.concurrency = 4, .max_tokens = 8});
  std::string id;
  const auto proposed = [&](const v1::Group&) {
    grpc::ClientContext context;
    v1::CreatePlanRequest request;
    request.set_group("demo");
    v1::CreatePlanResponse response;
    // FAILED_PRECONDITION until there is load enough.
    if (!cluster.plans().CreatePlan(&context, request, &response).ok()) return false;
    id = response.plan().state() == v1::PLAN_STATE_PROPOSED ? response.plan().id() : "";
    return !id.empty();
  };
  const auto group = cluster.AwaitGroup("demo", kPatience, proposed);
  BALLAST_CHECK(group.ok()) << group.status();
  return id;
}

int Main(bool tls, const std::string& certificates) {
  ClusterOptions options;
  options.controller_binary = "controller/ballast-controller";
  options.worker_binary = "worker/ballast-worker";
  options.model = "testdata/olmoe-9m";
  options.directory = absl::StrCat(std::getenv("TEST_TMPDIR"), tls ? "/tls" : "/plain");
  std::filesystem::create_directories(options.directory);
  const int workers = tls ? 2 : 4;
  options.groups = {absl::StrCat("name=demo,size=", workers, ",mode=approve,policy=cost-aware")};
  options.controller_flags = {"--report-interval=200ms", "--load-window=1h", "--plan-expiry=1h",
                              // No plan but the one that is asked for.
                              "--planning-interval=24h", "--plan-below=0"};
  MakePatient(options);
  const TestAuthority authority("console");
  if (tls) {
    std::filesystem::create_directories(certificates);
    options.tls = authority.Issue(certificates + "/daemon");
    for (const char* role : {"operator", "viewer", "nobody"}) {
      authority.Issue(absl::StrCat(certificates, "/", role), "DNS:someone", {absl::StrCat("ballast:", role)});
    }
  }
  const auto cluster = Cluster::Start(std::move(options));
  BALLAST_CHECK(cluster.ok()) << cluster.status();
  std::vector<WorkerOptions> workers_options;
  for (int i = 0; i < workers; ++i) {
    workers_options.push_back({.name = WorkerName(i), .group = "demo", .slots = tls ? 0 : kSlots});
  }
  absl::Status status = (*cluster)->StartWorkers(workers_options);
  BALLAST_CHECK(status.ok()) << status;
  status = (*cluster)->AwaitServing("demo", workers, kPatience).status();
  BALLAST_CHECK(status.ok()) << status;
  const std::string plan = tls ? "" : AwaitPlan(**cluster, workers);
  std::cout << "ready console=" << (*cluster)->controller_console_address() << " plan=" << plan << std::endl;
  while (std::cin.get() != EOF) {
  }
  return 0;
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) { return ballast::Main(argc == 3, argc == 3 ? argv[2] : ""); }
