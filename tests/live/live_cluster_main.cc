// A small cluster at work, for tests in other languages: a controller and workers as real processes on loopback,
// labelled requests, and one plan that has been rolled out. Prints a line of JSON once that is so, and stops everything
// when its stdin ends:
//   {"controller": ADDRESS, "controller_metrics": ADDRESS, "group": NAME, "plan": ID (not with --no-plan),
//    "workers": [{"name": NAME, "grpc": ADDRESS, "metrics": ADDRESS}, ...],
//    "tls": {"operator": FILES, "viewer": FILES}}    with --tls: certificates of these roles, each as
//                                                    {"certificate": PATH, "key": PATH, "authorities": PATH}
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "grpcpp/grpcpp.h"
#include "nlohmann/json.hpp"
#include "proto/base/flags.h"
#include "proto/base/grpc_status.h"
#include "proto/base/status_macros.h"
#include "proto/base/test_certificates.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/load.h"

namespace ballast {
namespace {

constexpr char kGroup[] = "chat";

struct Options {
  std::string bin = "bin";
  std::string model = "testdata/olmoe-9m";
  std::string prompts = "testdata/prompts.jsonl";
  std::string directory;
  int workers = 2;
  int slots = 132;
  int concurrency = 6;
  int max_tokens = 8;
  double classify = 0;
  bool tls = false;
  bool quiet = false;
  bool no_plan = false;
};

// Waits until the plan is carried out.
absl::Status AwaitDone(Cluster& cluster, const std::string& id) {
  v1::Plan plan;
  absl::Status failed;
  const auto ended = [&](const v1::Group&) {
    grpc::ClientContext context;
    v1::GetPlanRequest request;
    request.set_id(id);
    v1::GetPlanResponse response;
    failed = FromGrpc(cluster.plans().GetPlan(&context, request, &response));
    plan = response.plan();
    return !failed.ok() || plan.state() >= v1::PLAN_STATE_DONE;
  };
  BALLAST_RETURN_IF_ERROR(cluster.AwaitGroup(kGroup, kPatience, ended).status());
  BALLAST_RETURN_IF_ERROR(failed);
  if (plan.state() != v1::PLAN_STATE_DONE) return absl::InternalError(plan.ShortDebugString());
  return absl::OkStatus();
}

absl::StatusOr<v1::CreatePlanResponse> MakePlan(Cluster& cluster, bool dry_run) {
  grpc::ClientContext context;
  v1::CreatePlanRequest request;
  request.set_group(kGroup);
  request.set_dry_run(dry_run);
  v1::CreatePlanResponse response;
  BALLAST_RETURN_IF_ERROR(FromGrpc(cluster.plans().CreatePlan(&context, request, &response)));
  return response;
}

// Makes a plan of the load so far, approves it and waits until it is carried out. The plan's id.
absl::StatusOr<std::string> PlanAndRollOut(Cluster& cluster) {
  BALLAST_ASSIGN_OR_RETURN(const v1::CreatePlanResponse created, MakePlan(cluster, /*dry_run=*/false));
  grpc::ClientContext approve_context;
  v1::ApprovePlanRequest approve;
  approve.set_id(created.plan().id());
  v1::ApprovePlanResponse approved;
  BALLAST_RETURN_IF_ERROR(FromGrpc(cluster.plans().ApprovePlan(&approve_context, approve, &approved)));
  BALLAST_RETURN_IF_ERROR(AwaitDone(cluster, created.plan().id()));
  return created.plan().id();
}

absl::StatusOr<std::string> RollBack(Cluster& cluster) {
  grpc::ClientContext context;
  v1::RollbackRequest request;
  request.set_group(kGroup);
  v1::RollbackResponse response;
  BALLAST_RETURN_IF_ERROR(FromGrpc(cluster.plans().Rollback(&context, request, &response)));
  BALLAST_RETURN_IF_ERROR(AwaitDone(cluster, response.plan().id()));
  return response.plan().id();
}

// Carries out what stdin says until it ends.
absl::Status Obey(Cluster& cluster) {
  for (std::string command; std::getline(std::cin, command);) {
    std::string id;
    if (command == "dry-run") {
      BALLAST_ASSIGN_OR_RETURN(const v1::CreatePlanResponse made, MakePlan(cluster, /*dry_run=*/true));
      id = made.plan().id();
    } else if (command == "rollback") {
      BALLAST_ASSIGN_OR_RETURN(id, RollBack(cluster));
    } else {
      return absl::InvalidArgumentError(absl::StrCat("no command '", command, "'"));
    }
    std::printf("%s\n", id.c_str());
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  BALLAST_ASSIGN_OR_RETURN(std::vector<Prompt> prompts, ReadPrompts(options.prompts));
  for (size_t i = 0; options.classify > 0 && i < prompts.size(); i += 4) prompts[i].task.clear();
  ClusterOptions shape;
  shape.controller_binary = options.bin + "/controller/ballast-controller";
  shape.worker_binary = options.bin + "/worker/ballast-worker";
  shape.model = options.model;
  shape.directory = options.directory;
  shape.groups = {absl::StrCat("name=", kGroup, ",size=", options.workers, ",mode=approve,policy=task-aware")};
  shape.controller_flags = {"--report-interval=500ms", "--load-window=1h",
                            // No plans but those that are asked for.
                            "--planning-interval=24h", "--plan-below=0"};
  MakePatient(shape);
  const TestAuthority authority("live");
  if (options.tls) shape.tls = authority.Issue(options.directory + "/peer");
  BALLAST_ASSIGN_OR_RETURN(const std::unique_ptr<Cluster> cluster, Cluster::Start(shape));
  std::vector<WorkerOptions> workers;
  for (int i = 0; i < options.workers; ++i) {
    workers.push_back({.name = absl::StrCat("worker-", i),
                       .group = kGroup,
                       .slots = options.slots,
                       .extra_flags = {absl::StrCat("--classify-tasks=", options.classify)}});
  }
  BALLAST_RETURN_IF_ERROR(cluster->StartWorkers(workers));
  BALLAST_RETURN_IF_ERROR(cluster->AwaitServing(kGroup, options.workers, kPatience).status());

  nlohmann::json line = {{"controller", cluster->controller_address()},
                         {"controller_metrics", cluster->controller_metrics_address()},
                         {"group", kGroup},
                         {"workers", nlohmann::json::array()}};
  std::map<std::string, std::shared_ptr<v1::Inference::Stub>> stubs;
  for (const WorkerOptions& worker : workers) {
    stubs[worker.name] = cluster->inference(worker.name);
    line["workers"].push_back({{"name", worker.name},
                               {"grpc", cluster->worker_address(worker.name)},
                               {"metrics", cluster->worker_metrics_address(worker.name)}});
  }
  if (options.tls) {
    for (const std::string role : {"operator", "viewer"}) {
      const TlsFiles files =
          authority.Issue(absl::StrCat(options.directory, "/", role), "DNS:" + role, {"ballast:" + role});
      line["tls"][role] = {{"certificate", files.certificate}, {"key", files.key}, {"authorities", files.authorities}};
    }
  }
  if (options.no_plan) {
    std::printf("%s\n", line.dump().c_str());
    std::fflush(stdout);
    return Obey(*cluster);
  }
  LoadGenerator load(prompts, stubs, {.concurrency = options.concurrency, .max_tokens = options.max_tokens});
  BALLAST_RETURN_IF_ERROR(
      cluster->AwaitGroup(kGroup, kPatience, [](const v1::Group& g) { return g.window_tokens() > 2000; }).status());
  BALLAST_ASSIGN_OR_RETURN(line["plan"], PlanAndRollOut(*cluster));
  if (options.quiet) load.Stop();
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
  return Obey(*cluster);
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  ballast::Options options;
  CLI::App app("Serves labelled requests with a small cluster until its input ends.", "live_cluster");
  app.add_option("--bin", options.bin, "Folder of controller/ballast-controller and worker/ballast-worker")
      ->capture_default_str();
  app.add_option("--model", options.model, "Checkpoint folder")->capture_default_str();
  app.add_option("--prompts", options.prompts, "Prompts, a JSON object a line")->capture_default_str();
  app.add_option("--directory", options.directory, "For the store, the logs and the certificates")->required();
  app.add_option("--workers", options.workers, "Workers")->check(CLI::Range(1, 16))->capture_default_str();
  app.add_option("--slots", options.slots, "Expert slots a worker, staging included; 0: all experts")
      ->capture_default_str();
  app.add_option("--concurrency", options.concurrency, "Requests at a time")->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens, "Tokens a request")->capture_default_str();
  app.add_option("--classify", options.classify,
                 "The workers' --classify-tasks; unless 0, some requests are unlabelled")
      ->capture_default_str();
  app.add_flag("--tls", options.tls, "Mutual TLS, with certificates made here");
  app.add_flag("--quiet", options.quiet, "No requests after the rollout");
  app.add_flag("--no-plan", options.no_plan, "No requests and no rollout");
  if (const auto status = ballast::ParseFlags(app, argc, argv)) return *status;
  if (const absl::Status status = ballast::Run(options); !status.ok()) {
    std::fprintf(stderr, "live_cluster: %s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
