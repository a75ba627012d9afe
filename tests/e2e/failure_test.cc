// Killed workers and controllers, through real processes: what must fail fails fast and by name, the rest goes on.

#include <numeric>

#include "absl/strings/str_cat.h"
#include "controller/store/records.pb.h"
#include "controller/store/sqlite_store.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/test_data.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class FailureTest : public ClusterTest {
 protected:
  // Slow enough moves that a test can act in the middle of a wave; the whole of a plan still takes seconds.
  static std::vector<std::string> SlowMoves() { return {"--max-bytes-per-second=1000000"}; }

  static v1::Group GetGroup(Cluster& cluster) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
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
    v1::CreatePlanRequest create;
    create.set_group("g");
    v1::CreatePlanResponse created;
    grpc::Status status = cluster.plans().CreatePlan(&create_context, create, &created);
    EXPECT_TRUE(status.ok()) << status.error_message();
    grpc::ClientContext approve_context;
    v1::ApprovePlanRequest approve;
    approve.set_id(created.plan().id());
    v1::ApprovePlanResponse approved;
    status = cluster.plans().ApprovePlan(&approve_context, approve, &approved);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return created.plan().id();
  }

  static void AwaitLoad(Cluster& cluster) {
    const auto group =
        cluster.AwaitGroup("g", absl::Seconds(60), [](const v1::Group& g) { return g.window_tokens() > 500; });
    ASSERT_TRUE(group.ok()) << group.status();
  }

  // Waits until the plan's rollout has done `moves` moves or ended.
  static void AwaitMoves(Cluster& cluster, const std::string& id, int moves) {
    const auto reached = cluster.AwaitGroup("g", absl::Seconds(60), [&](const v1::Group&) {
      grpc::ClientContext context;
      v1::GetPlanRequest request;
      request.set_id(id);
      v1::GetPlanResponse response;
      const grpc::Status status = cluster.plans().GetPlan(&context, request, &response);
      return status.ok() && (response.plan().moves_done() >= moves || response.plan().state() >= v1::PLAN_STATE_DONE);
    });
    ASSERT_TRUE(reached.ok()) << reached.status();
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

  const absl::Time killed = Clock::Real().Now();
  cluster->KillWorker("w1");
  const auto group = cluster->AwaitServing("g", 1, absl::Seconds(10));
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(group->missing_total(), 0);
  // Requests homed on the survivor go on while the group changes its view.
  const Answer after = Generate(*cluster->inference("w0"), prompts[0].text, prompts[0].task, 32, absl::Seconds(30));
  EXPECT_TRUE(after.status.ok()) << after.status;
  load.Stop();
  int survived_it = 0;
  for (const Answer& a : load.answers()) {
    if (a.worker == "w1" && a.sent + a.latency > killed) continue;
    EXPECT_TRUE(a.status.ok()) << a.worker << ": " << a.status;
    survived_it += a.sent < killed && a.sent + a.latency > killed;
  }
  EXPECT_GT(survived_it, 0) << "no request was under way on the survivor when its peer died";
}

TEST_F(FailureTest, WithoutReplicasRequestsFailByNameWithinTwoSecondsAndServingResumes) {
  const auto cluster = Serving({.workers = 4, .slots_per_layer = kExperts / 4});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(200);
  const Answer before = Generate(*cluster->inference("w0"), prompts[0].text, prompts[0].task, 16, absl::Seconds(30));
  ASSERT_TRUE(before.status.ok()) << before.status;
  LoadGenerator load(prompts, {{"w0", Stubs(*cluster, 4)["w0"]}}, {.concurrency = 4, .max_tokens = 64});
  AwaitLoad(*cluster);
  const absl::Time killed = Clock::Real().Now();
  cluster->KillWorker("w3");
  const auto degraded = cluster->AwaitGroup("g", absl::Seconds(10),
                                            [](const v1::Group& g) { return g.state() == v1::GROUP_STATE_DEGRADED; });
  ASSERT_TRUE(degraded.ok()) << degraded.status();
  EXPECT_EQ(degraded->missing_total(), kLayers * kExperts / 4);
  load.Stop();
  int failed = 0;
  for (const Answer& a : load.answers()) {
    if (a.status.ok()) continue;
    ++failed;
    EXPECT_EQ(a.status.code(), absl::StatusCode::kUnavailable) << a.status;
    EXPECT_LT(a.sent + a.latency, std::max(killed, a.sent) + absl::Seconds(2)) << a.status;
  }
  EXPECT_GT(failed, 0);
  const Answer named = Generate(*cluster->inference("w0"), prompts[0].text, prompts[0].task, 16, absl::Seconds(30));
  EXPECT_EQ(named.status.code(), absl::StatusCode::kUnavailable) << named.status;
  EXPECT_LT(named.latency, absl::Seconds(2));
  EXPECT_THAT(std::string(named.status.message()), AllOf(HasSubstr("layer"), HasSubstr("expert"), HasSubstr("w3")));

  ASSERT_TRUE(cluster
                  ->StartWorker({.name = "w3",
                                 .group = "g",
                                 .slots = kExperts / 4 * kLayers + kStagingSlots,
                                 .extra_flags = {absl::StrCat("--staging-slots=", kStagingSlots)}})
                  .ok());
  const auto serving = cluster->AwaitServing("g", 4, absl::Seconds(30));
  ASSERT_TRUE(serving.ok()) << serving.status();
  const Answer after = Generate(*cluster->inference("w0"), prompts[0].text, prompts[0].task, 16, absl::Seconds(30));
  EXPECT_TRUE(after.status.ok()) << after.status;
  EXPECT_EQ(after.token_ids, before.token_ids);
}

TEST_F(FailureTest, WorkerKilledWhileAWaveIsPreparedAbortsIt) {
  const auto cluster = Serving({.workers = 4, .controller_flags = SlowMoves()});
  ASSERT_NE(cluster, nullptr);
  const std::vector<Prompt> prompts = SomePrompts(200);
  const auto expected = Digests(*cluster, "w0", prompts);
  AwaitLoad(*cluster);
  const uint64_t epoch = GetGroup(*cluster).epoch();
  const std::string id = StartRollout(*cluster);
  AwaitMoves(*cluster, id, 1);
  cluster->KillWorker("w3");
  const auto plan = AwaitPlan(*cluster, id, absl::Seconds(30));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->state(), v1::PLAN_STATE_ABORTED) << plan->ShortDebugString();
  EXPECT_EQ(GetGroup(*cluster).epoch(), epoch + plan->waves_done());
  ASSERT_TRUE(cluster
                  ->StartWorker({.name = "w3",
                                 .group = "g",
                                 .slots = 10 * kLayers + kStagingSlots,
                                 .extra_flags = {absl::StrCat("--staging-slots=", kStagingSlots)}})
                  .ok());
  ASSERT_TRUE(cluster->AwaitServing("g", 4, absl::Seconds(30)).ok());
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
    AwaitMoves(*cluster, id, i * 3);
    cluster->KillController();
    ASSERT_TRUE(cluster->RestartController().ok());
    const auto plan = AwaitPlan(*cluster, id, absl::Seconds(60));
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_THAT(plan->state(), ::testing::AnyOf(v1::PLAN_STATE_DONE, v1::PLAN_STATE_ABORTED));
    const auto group = cluster->AwaitServing("g", 4, absl::Seconds(30));
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_GT(group->term(), last.term());
    EXPECT_GE(group->epoch(), last.epoch() + plan->waves_done());
    EXPECT_GE(group->view().view(), last.view().view());
    for (int m = 0; m < 4; ++m) {
      EXPECT_EQ(group->view().members(m).incarnation(), last.view().members(m).incarnation());
    }
    last = *group;
    grpc::ClientContext context;
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
  const auto plan = AwaitPlan(*cluster, id, absl::Seconds(60));
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
  for (int kill = 0; kill < 3; ++kill) {
    SCOPED_TRACE(absl::StrCat("kill ", kill));
    int64_t seen = -1;
    const auto more = cluster->AwaitGroup("g", absl::Seconds(60), [&](const v1::Group& g) {
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
    ASSERT_TRUE(cluster->AwaitServing("g", 2, absl::Seconds(60)).ok());
  }
  EXPECT_GT(before, 0);
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
