// Groups that are planned by what the tokens of their tasks choose together.
#include <map>
#include <set>
#include <string>

#include "controller/group/group.h"
#include "controller/group/group_harness.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

GroupHarness::Options TaskAware() {
  GroupHarness::Options options = GroupHarness::Small();
  options.group.config.mode = v1::GROUP_MODE_AUTO;
  options.group.config.policy = "task-aware";
  options.group.planning.interval = absl::Seconds(5);
  options.group.planning.mix_window = absl::Seconds(30);
  options.group.load.window = absl::Minutes(1);
  // However level the load is or not: only the mix calls for plans.
  options.group.planning.plan_below = 0;
  // All of a task's tokens choose the same experts here: alone none can be level.
  options.group.planning.group_limits = {.maxvio = .1, .task_maxvio = 10};
  return options;
}

void Serve(GroupHarness& h, const std::map<std::string, int64_t>& tokens, absl::Duration time) {
  for (const absl::Time end = h.now() + time; h.now() < end;) {
    for (int i = 0; i < 4; ++i) h.SendTasks(i, tokens);
    h.Advance(absl::Seconds(5));
  }
}

const std::map<std::string, int64_t> kAll = {{"a", 1000}, {"b", 1000}, {"c", 1000}, {"d", 1000}};

TEST(TaskAwareGroup, GathersWhatIsChosenTogether_AndSaysWhereTasksStart) {
  GroupHarness h(TaskAware());
  h.FormGroup();
  Serve(h, kAll, absl::Seconds(30));
  const auto plan = h.NewestPlan();
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->state(), v1::PLAN_STATE_DONE) << plan->ShortDebugString();
  EXPECT_EQ(plan->policy(), "task-aware");
  EXPECT_THAT(plan->reason(), HasSubstr("not grouped for any mix"));
  EXPECT_DOUBLE_EQ(plan->effect().traffic_before().hops_per_token(), 4);
  EXPECT_DOUBLE_EQ(plan->effect().traffic_after().hops_per_token(), 0);
  EXPECT_LT(plan->effect().traffic_after().maxvio(), .1);
  ASSERT_EQ(plan->effect().tasks_size(), 4);
  EXPECT_DOUBLE_EQ(plan->effect().tasks(2).mix_ratio(), .25);
  const auto shown = h.group().Plan(plan->id());
  ASSERT_GT(shown->reasons_size(), 0);
  EXPECT_GT(shown->reasons(0).hops_saved_per_token(), 0);
  EXPECT_EQ(shown->reasons(0).tasks_size(), 1);

  // Each task starts on a worker of its own, where all its experts are: in the placement in force, here and there.
  const Placement& placement = h.group().placement();
  ASSERT_THAT(placement.task_homes, SizeIs(4));
  std::set<int32_t> homes;
  for (const TaskHomes& task : placement.task_homes) {
    ASSERT_THAT(task.homes, SizeIs(1)) << task.task;
    EXPECT_DOUBLE_EQ(task.homes[0].copies_saved_per_token, 4) << task.task;
    homes.insert(task.homes[0].worker);
    for (int l = 0; l < 4; ++l) {
      const auto [first, second] = h.TaskExperts(task.task, l);
      for (const Replica& r : placement.replicas) {
        if (r.expert == ExpertId{l, first} || r.expert == ExpertId{l, second}) {
          EXPECT_EQ(r.worker, task.homes[0].worker) << task.task << ", layer " << l;
        }
      }
    }
  }
  EXPECT_THAT(homes, SizeIs(4));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(h.worker_placement(i).task_homes, placement.task_homes);
}

TEST(TaskAwareGroup, WorkersThatClassify_AreToldWhatPromptsOfTasksChoose) {
  GroupHarness h(GroupHarness::Small());
  h.SetClassifies(1);
  h.FormGroup();
  h.SendTasks(0, {{"a", 8000}, {"b", 6000}}, v1::PHASE_PREFILL);
  h.SendTasks(0, {{"c", 5000}});
  h.Run();
  EXPECT_EQ(h.worker_profiles(1).tasks_size(), 0);
  h.SendTasks(2, {{"a", 8000}}, v1::PHASE_PREFILL);
  h.Run();
  ASSERT_EQ(h.worker_profiles(1).tasks_size(), 2);
  EXPECT_EQ(h.worker_profiles(0).tasks_size(), 0);
  const v1::TaskProfile& a = h.worker_profiles(1).tasks(0);
  EXPECT_EQ(a.task(), "a");
  EXPECT_EQ(a.tokens(h.TaskExperts("a", 0).first), 16000u);
  EXPECT_EQ(h.worker_profiles(1).tasks(1).tokens(h.TaskExperts("b", 0).second), 6000u);

  // A process that starts anew is told again.
  h.KillProcess(1);
  h.StartProcess(1);
  EXPECT_EQ(h.worker_profiles(1).tasks_size(), 0);
  h.Run();
  EXPECT_EQ(h.worker_profiles(1).tasks_size(), 2);

  // And by a controller that starts anew, before any report.
  h.Advance(absl::Seconds(3));
  h.KillProcess(1);
  h.CrashNow();
  h.StartProcess(1);
  h.Run();
  ASSERT_EQ(h.worker_profiles(1).tasks_size(), 2);
  EXPECT_EQ(h.worker_profiles(1).tasks(0).task(), "a");
  EXPECT_EQ(h.worker_profiles(1).tasks(0).tokens(h.TaskExperts("a", 0).first), 16000u);
}

TEST(TaskAwareGroup, WithHomesWorkersLearnHowBusyTheOthersAre) {
  GroupHarness h(TaskAware());
  h.FormGroup();
  h.SetRequests(2, 7);
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(h.worker_ack(0).loads_size(), 0) << "nobody is anybody's home";
  Serve(h, kAll, absl::Seconds(30));
  ASSERT_THAT(h.group().placement().task_homes, SizeIs(4));
  h.BreakSession(3);
  h.Heartbeats();
  for (int i = 0; i < 3; ++i) {
    h.DeliverToController(i);
    h.DeliverToWorker(i);
  }
  ASSERT_EQ(h.worker_ack(0).loads_size(), 2) << "the third of the others has no session";
  EXPECT_EQ(h.worker_ack(0).loads(0).worker(), "w1");
  EXPECT_EQ(h.worker_ack(0).loads(1).worker(), "w2");
  EXPECT_EQ(h.worker_ack(0).loads(1).requests_running(), 7);
}

TEST(TaskAwareGroup, AMixThatStaysIsPlannedForOnce_AnotherOneAgain) {
  GroupHarness h(TaskAware());
  h.FormGroup();
  Serve(h, kAll, absl::Minutes(2));
  const int jobs = h.plan_jobs();
  const uint64_t epoch = h.group().placement().epoch.value();
  Serve(h, kAll, absl::Minutes(3));
  EXPECT_EQ(h.plan_jobs(), jobs);
  EXPECT_FALSE(h.group().DetectMixDrift().drifted);
  // Two tasks go, the others have twice as much to do.
  Serve(h, {{"a", 2000}, {"b", 2000}}, absl::Minutes(1));
  EXPECT_GT(h.plan_jobs(), jobs);
  const auto plan = h.NewestPlan();
  EXPECT_THAT(plan->reason(), HasSubstr("the mix of tasks is"));
  EXPECT_GT(h.group().placement().epoch.value(), epoch);
  // What is busiest was a half of everything above its quarter, and is level again, or split as far as slots allow.
  EXPECT_LT(plan->effect().traffic_after().maxvio(), plan->effect().traffic_before().maxvio());
  EXPECT_FALSE(h.group().DetectMixDrift().drifted) << h.group().DetectMixDrift().reason;
}

TEST(TaskAwareGroup, PlansFromFewRoutesAreNotTheLast) {
  GroupHarness::Options options = TaskAware();
  options.group.load.window = absl::Minutes(4);
  GroupHarness h(options);
  h.FormGroup();
  Serve(h, kAll, absl::Minutes(1));
  ASSERT_TRUE(h.NewestPlan().has_value());
  EXPECT_TRUE(h.group().DetectMixDrift().drifted) << "the window is not half full";
  Serve(h, kAll, absl::Minutes(3));
  EXPECT_FALSE(h.group().DetectMixDrift().drifted);
}

TEST(TaskAwareGroup, PolicyIsSetAndKept) {
  GroupHarness::Options options = TaskAware();
  options.group.config.policy = "cost-aware";
  options.group.config.mode = v1::GROUP_MODE_APPROVE;
  GroupHarness h(options);
  h.FormGroup();
  Serve(h, kAll, absl::Seconds(20));
  EXPECT_EQ(h.group().Describe(h.now()).policy(), "cost-aware");
  EXPECT_FALSE(h.NewestPlan().has_value()) << "it is level";
  h.Operate([&](Group& g, Effects& effects) {
    g.SetPolicy("task-aware", h.now(), effects);
    return 0;
  });
  h.CrashNow();
  EXPECT_EQ(h.group().Describe(h.now()).policy(), "task-aware");
  // Routes outlive the controller, too.
  EXPECT_THAT(h.group().SampledRoutes().tasks, SizeIs(4));
  h.Advance(absl::Seconds(10));
  ASSERT_TRUE(h.NewestPlan().has_value());
  EXPECT_EQ(h.NewestPlan()->state(), v1::PLAN_STATE_PROPOSED);
  EXPECT_EQ(h.NewestPlan()->policy(), "task-aware");
  // What the plan says outlives it as well.
  h.CrashNow();
  EXPECT_GT(h.group().Plan(h.NewestPlan()->id())->reasons_size(), 0);
}

TEST(TaskAwareGroup, KeepsItsMoveBudgetAndGoesOn) {
  GroupHarness::Options options = TaskAware();
  options.group.planning.max_moves = 6;
  GroupHarness h(options);
  h.FormGroup();
  Serve(h, kAll, absl::Minutes(3));
  ASSERT_GT(h.group().Plans().size(), 1u);
  for (const v1::Plan& plan : h.group().Plans()) EXPECT_LE(plan.moves_total(), 6) << plan.ShortDebugString();
  // Of 4; what is left would not pay.
  EXPECT_LE(h.group().Plans().front().effect().traffic_after().hops_per_token(), 1);
}

TEST(TaskAwareGroup, RollbackBringsTheHomesBack) {
  GroupHarness h(TaskAware());
  h.FormGroup();
  Serve(h, kAll, absl::Seconds(30));
  ASSERT_THAT(h.group().placement().task_homes, SizeIs(4));
  const auto rollback =
      h.Operate([&](Group& g, Effects& effects) { return g.Rollback("because", "ann", h.now(), effects); });
  ASSERT_TRUE(rollback.ok()) << rollback.status();
  h.Advance(absl::Seconds(5));
  EXPECT_THAT(h.group().placement().task_homes, SizeIs(0));
}

TEST(TaskAwareGroup, WithoutRoutesItSaysSo) {
  GroupHarness::Options options = TaskAware();
  options.group.config.mode = v1::GROUP_MODE_APPROVE;
  GroupHarness h(options);
  h.FormGroup();
  h.LoadWindowSkewed();
  const auto plan = h.CreatePlan();
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("--route-samples"));
}

}  // namespace
}  // namespace ballast
