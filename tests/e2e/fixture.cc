#include "tests/e2e/fixture.h"

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/grpc_status.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr char kModel[] = "testdata/olmoe-9m";
constexpr char kPrompts[] = "testdata/prompts.jsonl";

bool Ended(v1::PlanState state) { return state >= v1::PLAN_STATE_DONE; }

}  // namespace

void SetDeadline(grpc::ClientContext& context) {
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kPatience));
}

std::string WorkerName(int i) { return absl::StrCat("w", i); }

std::unique_ptr<Cluster> ClusterTest::Serving(const Shape& shape) {
  ClusterOptions options;
  options.controller_binary = shape.controller_binary;
  options.worker_binary = shape.worker_binary;
  options.ctl_binary = "controller/ctl/ballastctl";
  options.model = kModel;
  // Sockets' paths are short: TEST_TMPDIR may be too deep for them.
  std::string pattern = absl::StrCat(std::getenv("TEST_TMPDIR"), "/cluster-XXXXXX");
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  options.directory = pattern;
  options.combine = shape.combine;
  options.groups = {absl::StrCat("name=g,size=", shape.workers, ",mode=", shape.mode, ",policy=", shape.policy,
                                 ",combine=", shape.combine)};
  options.controller_flags = shape.controller_flags;
  options.worker_flags = shape.worker_flags;
  options.worker_flags.push_back(absl::StrCat("--staging-slots=", kStagingSlots));
  MakePatient(options);
  options.tls = shape.tls;
  auto cluster = Cluster::Start(std::move(options));
  EXPECT_TRUE(cluster.ok()) << cluster.status();
  if (!cluster.ok()) return nullptr;
  std::vector<WorkerOptions> workers;
  for (int i = 0; i < shape.workers; ++i) {
    workers.push_back(OneOf(WorkerName(i), shape.slots_per_layer));
  }
  workers[0].extra_flags = shape.first_worker_flags;
  absl::Status status = (*cluster)->StartWorkers(workers);
  EXPECT_TRUE(status.ok()) << status;
  if (!status.ok()) return nullptr;
  status = (*cluster)->AwaitServing("g", shape.workers, kPatience).status();
  EXPECT_TRUE(status.ok()) << status;
  if (!status.ok()) return nullptr;
  return *std::move(cluster);
}

WorkerOptions ClusterTest::OneOf(const std::string& name, int slots_per_layer) {
  return {.name = name, .group = "g", .slots = std::min(slots_per_layer, kExperts) * kLayers + kStagingSlots};
}

std::vector<Prompt> ClusterTest::SomePrompts(size_t max_bytes) {
  const auto all = ReadPrompts(kPrompts);
  EXPECT_TRUE(all.ok()) << all.status();
  std::vector<Prompt> some;
  for (size_t i = 0; all.ok() && i < all->size(); i += 8) {
    Prompt p = (*all)[i];
    size_t end = std::min(max_bytes, p.text.size());
    // Not in the middle of a UTF-8 sequence.
    while (end > 0 && end < p.text.size() && (p.text[end] & 0xC0) == 0x80) --end;
    p.text.resize(end);
    some.push_back(std::move(p));
  }
  return some;
}

std::vector<std::vector<uint64_t>> ClusterTest::Digests(Cluster& cluster, const std::string& worker,
                                                        const std::vector<Prompt>& prompts) {
  std::vector<std::vector<uint64_t>> digests(prompts.size());
  std::vector<std::thread> clients;
  const auto stub = cluster.inference(worker);
  for (size_t i = 0; i < prompts.size(); ++i) {
    clients.emplace_back([&, i] {
      grpc::ClientContext context;
      SetDeadline(context);
      v1::ScoreRequest request;
      request.set_text(prompts[i].text);
      request.set_task(prompts[i].task);
      request.set_logits_digest(true);
      v1::ScoreResponse response;
      const grpc::Status status = stub->Score(&context, request, &response);
      EXPECT_TRUE(status.ok()) << status.error_message();
      digests[i].assign(response.logits_digests().begin(), response.logits_digests().end());
    });
  }
  for (std::thread& t : clients) t.join();
  return digests;
}

absl::StatusOr<v1::Plan> ClusterTest::AwaitPlan(Cluster& cluster, const std::string& id) {
  v1::Plan plan;
  absl::Status failed;
  const auto ended = [&](const v1::Group&) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::GetPlanRequest request;
    request.set_id(id);
    v1::GetPlanResponse response;
    const grpc::Status status = cluster.plans().GetPlan(&context, request, &response);
    // The controller is down: it is asked again when the watch has found it again.
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) return false;
    failed = FromGrpc(status);
    plan = response.plan();
    return !failed.ok() || Ended(plan.state());
  };
  BALLAST_RETURN_IF_ERROR(cluster.AwaitGroup("g", kPatience, ended).status());
  BALLAST_RETURN_IF_ERROR(failed);
  return plan;
}

absl::StatusOr<v1::Plan> ClusterTest::PlanAndRollOut(Cluster& cluster) {
  grpc::ClientContext create_context;
  SetDeadline(create_context);
  v1::CreatePlanRequest create;
  create.set_group("g");
  v1::CreatePlanResponse created;
  BALLAST_RETURN_IF_ERROR(FromGrpc(cluster.plans().CreatePlan(&create_context, create, &created)));
  grpc::ClientContext approve_context;
  SetDeadline(approve_context);
  v1::ApprovePlanRequest approve;
  approve.set_id(created.plan().id());
  v1::ApprovePlanResponse approved;
  BALLAST_RETURN_IF_ERROR(FromGrpc(cluster.plans().ApprovePlan(&approve_context, approve, &approved)));
  return AwaitPlan(cluster, created.plan().id());
}

std::map<std::string, std::shared_ptr<v1::Inference::Stub>> ClusterTest::Stubs(Cluster& cluster, int workers) {
  std::map<std::string, std::shared_ptr<v1::Inference::Stub>> stubs;
  for (int i = 0; i < workers; ++i) stubs[WorkerName(i)] = cluster.inference(WorkerName(i));
  return stubs;
}

}  // namespace ballast
