// Killed workers and controllers, through real processes: what must fail fails fast and by name, the rest goes on.

#include <signal.h>

#include <functional>
#include <iostream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "controller/store/records.pb.h"
#include "controller/store/sqlite_store.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/test_data.h"
#include "tests/cluster/metrics.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class FailureTest : public ClusterTest {
 protected:
  // Slow enough moves that the controller is killed in the middle of waves, too; the whole of a plan still takes
  // seconds.
  static std::vector<std::string> SlowMoves() { return {"--max-bytes-per-second=1000000"}; }

  static v1::Group GetGroup(Cluster& cluster) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::GetGroupRequest request;
    request.set_group("g");
    v1::GetGroupResponse response;
    const grpc::Status status = cluster.groups().GetGroup(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.group();
  }

  // Creates and approves a plan from the load so far; returns its id, or an empty one with a failure recorded.
  static std::string StartRollout(Cluster& cluster) {
    grpc::ClientContext create_context;
    SetDeadline(create_context);
    v1::CreatePlanRequest create;
    create.set_group("g");
    v1::CreatePlanResponse created;
    grpc::Status status = cluster.plans().CreatePlan(&create_context, create, &created);
    EXPECT_TRUE(status.ok()) << status.error_message();
    grpc::ClientContext approve_context;
    SetDeadline(approve_context);
    v1::ApprovePlanRequest approve;
    approve.set_id(created.plan().id());
    v1::ApprovePlanResponse approved;
    status = cluster.plans().ApprovePlan(&approve_context, approve, &approved);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return created.plan().id();
  }

  static void AwaitLoad(Cluster& cluster) {
    const auto group = cluster.AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.window_tokens() > 500; });
    ASSERT_TRUE(group.ok()) << group.status();
  }

  // Waits until `reached` says so of the plan.
  static void AwaitPlanIs(Cluster& cluster, const std::string& id,
                          const std::function<bool(const v1::Plan&)>& reached) {
    const auto group = cluster.AwaitGroup("g", kPatience, [&](const v1::Group&) {
      grpc::ClientContext context;
      SetDeadline(context);
      v1::GetPlanRequest request;
      request.set_id(id);
      v1::GetPlanResponse response;
      return cluster.plans().GetPlan(&context, request, &response).ok() && reached(response.plan());
    });
    ASSERT_TRUE(group.ok()) << group.status();
  }

  // Requests that `worker` has taken and not answered.
  static double RequestsUnderWay(Cluster& cluster, const std::string& worker) {
    const auto metrics = ReadMetrics(cluster.worker_metrics_address(worker));
    EXPECT_TRUE(metrics.ok()) << metrics.status();
    return metrics.ok() ? SumOf(*metrics, "ballast_requests_running") + SumOf(*metrics, "ballast_requests_waiting") : 0;
  }
};

TEST_F(FailureTest, WithEveryExpertTwiceOnlyTheDeadWorkersRequestsFail) {
  const auto cluster = Serving({.workers = 2, .slots_per_layer = kExperts});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(200);
  LoadGenerator load(prompts, Stubs(*cluster, 2), {.concurrency = 6, .max_tokens = 32});
  AwaitLoad(*cluster);
  const auto plan = PlanAndRollOut(*cluster);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->state(), v1::PLAN_STATE_DONE) << plan->ShortDebugString();
  load.Stop();
  for (const Answer& a : load.answers()) EXPECT_TRUE(a.status.ok()) << a.worker << ": " << a.status;

  // No step ends while a worker stands still: these requests are under way on the survivor when its peer dies.
  cluster->worker("w1").Signal(SIGSTOP);
  constexpr int kRequests = 4;
  std::vector<Answer> survivors(kRequests);
  std::vector<std::thread> clients;
  for (int i = 0; i < kRequests; ++i) {
    clients.emplace_back([&, i] {
      survivors[i] = Generate(*cluster->inference("w0"), prompts[i].text, prompts[i].task, 32, kPatience);
    });
  }
  while (RequestsUnderWay(*cluster, "w0") < kRequests && !HasFailure()) absl::SleepFor(absl::Milliseconds(20));
  cluster->KillWorker("w1");
  const auto group = cluster->AwaitServing("g", 1, kPatience);
  EXPECT_TRUE(group.ok() && group->missing_total() == 0) << group.status();
  for (std::thread& client : clients) client.join();
  for (const Answer& a : survivors) EXPECT_TRUE(a.status.ok()) << a.status;
}

TEST_F(FailureTest, WithoutReplicasRequestsFailByNameAtOnceAndServingResumes) {
  constexpr int kSlots = kExperts / 4;
  const auto cluster = Serving({.workers = 4, .slots_per_layer = kSlots});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(200);
  const Answer before = Generate(*cluster->inference("w0"), prompts[0].text, prompts[0].task, 16, kPatience);
  ASSERT_TRUE(before.status.ok()) << before.status;
  LoadGenerator load(prompts, {{"w0", Stubs(*cluster, 4)["w0"]}}, {.concurrency = 4, .max_tokens = 64});
  AwaitLoad(*cluster);
  const absl::Time killed = Clock::Real().Now();
  cluster->KillWorker("w3");
  const auto degraded =
      cluster->AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.state() == v1::GROUP_STATE_DEGRADED; });
  ASSERT_TRUE(degraded.ok()) << degraded.status();
  EXPECT_EQ(degraded->missing_total(), kLayers * kExperts / 4);
  load.Stop();
  // They are told, long before any timeout, a client's deadline included, would have ended them.
  int failed = 0;
  absl::Duration longest;
  for (const Answer& a : load.answers()) {
    if (a.status.ok()) continue;
    ++failed;
    EXPECT_EQ(a.status.code(), absl::StatusCode::kUnavailable) << a.status;
    longest = std::max(longest, a.sent + a.latency - std::max(killed, a.sent));
  }
  EXPECT_GT(failed, 0);
  EXPECT_LT(longest, absl::Minutes(1));
  const Answer named = Generate(*cluster->inference("w0"), prompts[0].text, prompts[0].task, 16, kPatience);
  EXPECT_EQ(named.status.code(), absl::StatusCode::kUnavailable) << named.status;
  std::cout << failed << " requests failed within " << longest << ", and one that came later in " << named.latency
            << "\n";
  EXPECT_LT(named.latency, absl::Minutes(1));
  EXPECT_THAT(std::string(named.status.message()), AllOf(HasSubstr("layer"), HasSubstr("expert"), HasSubstr("w3")));

  ASSERT_TRUE(cluster->StartWorker(OneOf("w3", kSlots)).ok());
  const auto serving = cluster->AwaitServing("g", 4, kPatience);
  ASSERT_TRUE(serving.ok()) << serving.status();
  const Answer after = Generate(*cluster->inference("w0"), prompts[0].text, prompts[0].task, 16, kPatience);
  EXPECT_TRUE(after.status.ok()) << after.status;
  EXPECT_EQ(after.token_ids, before.token_ids);
}

TEST_F(FailureTest, WorkerKilledWhileAWaveIsPreparedAbortsIt) {
  constexpr int kSlots = 10;
  const auto cluster = Serving({.workers = 4, .slots_per_layer = kSlots});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto expected = Digests(*cluster, "w0", prompts);
  AwaitLoad(*cluster);
  const uint64_t epoch = GetGroup(*cluster).epoch();
  // No wave is prepared while a worker stands still.
  cluster->worker("w3").Signal(SIGSTOP);
  const std::string id = StartRollout(*cluster);
  ASSERT_NO_FATAL_FAILURE(
      AwaitPlanIs(*cluster, id, [](const v1::Plan& plan) { return plan.state() == v1::PLAN_STATE_PREPARING; }));
  cluster->KillWorker("w3");
  const auto plan = AwaitPlan(*cluster, id);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->state(), v1::PLAN_STATE_ABORTED) << plan->ShortDebugString();
  EXPECT_EQ(plan->waves_done(), 0);
  EXPECT_EQ(GetGroup(*cluster).epoch(), epoch);
  ASSERT_TRUE(cluster->StartWorker(OneOf("w3", kSlots)).ok());
  ASSERT_TRUE(cluster->AwaitServing("g", 4, kPatience).ok());
  EXPECT_EQ(Digests(*cluster, "w0", prompts), expected);
}

// The controller is killed at many points of rollouts; what it must never lose is checked after each restart. The unit
// tests of the rollout restart it after every single record; here the records, the processes and the sockets are real.
TEST_F(FailureTest, ControllerKilledDuringRolloutsLosesNothing) {
  const auto cluster = Serving({.workers = 4, .controller_flags = SlowMoves()});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto expected = Digests(*cluster, "w0", prompts);
  LoadGenerator load(prompts, Stubs(*cluster, 4), {.concurrency = 4, .max_tokens = 16});
  AwaitLoad(*cluster);
  v1::Group last = GetGroup(*cluster);
  const int kills = RunsLong() ? 20 : 5;
  std::string id = StartRollout(*cluster);
  for (int i = 0; i < kills; ++i) {
    SCOPED_TRACE(absl::StrCat("kill ", i));
    ASSERT_NO_FATAL_FAILURE(AwaitPlanIs(*cluster, id, [i](const v1::Plan& plan) {
      return plan.moves_done() >= i * 3 || plan.state() >= v1::PLAN_STATE_DONE;
    }));
    cluster->KillController();
    ASSERT_TRUE(cluster->RestartController().ok());
    const auto plan = AwaitPlan(*cluster, id);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_THAT(plan->state(), ::testing::AnyOf(v1::PLAN_STATE_DONE, v1::PLAN_STATE_ABORTED));
    const auto group = cluster->AwaitServing("g", 4, kPatience);
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_GT(group->term(), last.term());
    EXPECT_GE(group->epoch(), last.epoch() + plan->waves_done());
    EXPECT_GE(group->view().view(), last.view().view());
    for (int m = 0; m < 4; ++m) {
      EXPECT_EQ(group->view().members(m).incarnation(), last.view().members(m).incarnation());
    }
    last = *group;
    grpc::ClientContext context;
    SetDeadline(context);
    v1::RollbackRequest request;
    request.set_group("g");
    v1::RollbackResponse response;
    const grpc::Status status = cluster->plans().Rollback(&context, request, &response);
    if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
      // Every wave so far was aborted: there is nothing to go back to.
      id = StartRollout(*cluster);
      continue;
    }
    ASSERT_TRUE(status.ok()) << status.error_message();
    id = response.plan().id();
  }
  const auto plan = AwaitPlan(*cluster, id);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->state(), v1::PLAN_STATE_DONE) << plan->ShortDebugString();
  load.Stop();
  for (const Answer& a : load.answers()) EXPECT_TRUE(a.status.ok()) << a.status;
  EXPECT_EQ(Digests(*cluster, "w0", prompts), expected);
}

// What plans remember of the load is written with the marks of the reports in it: wherever the controller is killed it
// holds what the window holds, token for token, those of all controllers so far together.
TEST_F(FailureTest, ControllerKilledUnderLoadRemembersItForPlans) {
  const auto cluster =
      Serving({.workers = 2,
               .slots_per_layer = kExperts,
               .controller_flags = {"--min-tokens=0", "--load-window=24h", "--checkpoint-interval=100ms"}});
  ASSERT_NE(cluster, nullptr);
  LoadGenerator load(SomePrompts(200), Stubs(*cluster, 2), {.concurrency = 4, .max_tokens = 16});
  double before = 0;
  // Some controller may be killed before it has written anything.
  for (int kill = 0; kill < 3 || before == 0; ++kill) {
    SCOPED_TRACE(absl::StrCat("kill ", kill));
    int64_t seen = -1;
    const auto more = cluster->AwaitGroup("g", kPatience, [&](const v1::Group& g) {
      if (seen < 0) seen = g.window_tokens();
      return g.window_tokens() > seen + 300;
    });
    ASSERT_TRUE(more.ok()) << more.status();
    cluster->KillController();
    double remembered = 0;
    double counted = 0;
    {
      const auto store = SqliteStore::Open(cluster->store_path());
      ASSERT_TRUE(store.ok()) << store.status();
      const auto book = (*store)->List("book/g/");
      ASSERT_TRUE(book.ok()) << book.status();
      for (const auto& [key, value] : *book) {
        store::BookRecord record;
        ASSERT_TRUE(record.ParseFromString(value)) << key;
        // Of now; the others are earlier ones.
        if (key.ends_with("/0"))
          remembered = std::accumulate(record.tokens().begin(), record.tokens().end(), remembered);
      }
      const auto cells = (*store)->List("load/g/");
      ASSERT_TRUE(cells.ok()) << cells.status();
      for (const auto& [key, value] : *cells) {
        store::LoadCellRecord record;
        ASSERT_TRUE(record.ParseFromString(value)) << key;
        for (const uint64_t tokens : record.tokens()) counted += static_cast<double>(tokens);
      }
    }
    EXPECT_EQ(remembered, counted);
    // What this controller had not written yet the workers tell the next one.
    EXPECT_GE(remembered, before);
    before = remembered;
    ASSERT_TRUE(cluster->RestartController().ok());
    ASSERT_TRUE(cluster->AwaitServing("g", 2, kPatience).ok());
  }
  load.Stop();
  for (const Answer& a : load.answers()) EXPECT_TRUE(a.status.ok()) << a.status;
}

TEST_F(FailureTest, IdleWorkersUseNoProcessor) {
  const auto cluster = Serving({.workers = 4});
  ASSERT_NE(cluster, nullptr);
  std::vector<absl::Duration> before;
  for (int w = 0; w < 4; ++w) before.push_back(cluster->worker(WorkerName(w)).cpu_time());
  // Time is what is measured here, so it has to pass.
  const absl::Duration span = absl::Seconds(5);
  const auto never = cluster->AwaitGroup("g", span, [](const v1::Group&) { return false; });
  ASSERT_EQ(never.status().code(), absl::StatusCode::kDeadlineExceeded) << never.status();
  for (int w = 0; w < 4; ++w) {
    const absl::Duration used = cluster->worker(WorkerName(w)).cpu_time() - before[w];
    EXPECT_LT(used / span, 0.02) << WorkerName(w);
  }
}

}  // namespace
}  // namespace ballast
