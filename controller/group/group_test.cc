// Scripts: what a group does when workers come, go and lie, and how a plan comes into force or does not.
#include "controller/group/group.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "controller/group/group_harness.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/release.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

v1::Group State(GroupHarness& h) { return h.group().Describe(h.now()); }

absl::StatusOr<v1::Plan> Approve(GroupHarness& h, const std::string& id) {
  return h.Operate([&](Group& g, Effects& effects) { return g.Approve(id, "an operator", h.now(), effects); });
}
absl::StatusOr<v1::Plan> Rollback(GroupHarness& h) {
  return h.Operate([&](Group& g, Effects& effects) { return g.Rollback("because", "ann", h.now(), effects); });
}
void SetPaused(GroupHarness& h, bool paused) {
  h.Operate([&](Group& g, Effects& effects) {
    g.SetPaused(paused, h.now(), effects);
    return 0;
  });
}
void SetMode(GroupHarness& h, v1::GroupMode mode) {
  h.Operate([&](Group& g, Effects& effects) {
    g.SetMode(mode, h.now(), effects);
    return 0;
  });
}

v1::Plan PlanOf(GroupHarness& h, const std::string& id) { return h.group().Plan(id)->plan(); }

// A plan that pays, not approved.
v1::Plan Propose(GroupHarness& h) {
  h.LoadWindowSkewed();
  const auto plan = h.CreatePlan();
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? plan->plan() : v1::Plan();
}

void ExpectAllServe(GroupHarness& h) {
  const v1::Group state = State(h);
  EXPECT_EQ(state.state(), v1::GROUP_STATE_SERVING) << state.ShortDebugString();
  EXPECT_EQ(state.view().members_size(), 4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(h.worker_view(i), state.view().view()) << GroupHarness::Name(i);
    EXPECT_EQ(h.worker_epoch(i), state.epoch()) << GroupHarness::Name(i);
  }
}

TEST(GroupForms, WhenItsSizeHasJoinedAndLoaded) {
  GroupHarness h(GroupHarness::Small());
  for (int i = 0; i < 3; ++i) h.StartProcess(i);
  h.Advance(absl::Seconds(5));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_FORMING);
  EXPECT_EQ(State(h).epoch(), 0u);
  h.StartProcess(3);
  h.Advance(absl::Seconds(1));
  ExpectAllServe(h);
  EXPECT_EQ(State(h).epoch(), 1u);
  EXPECT_EQ(State(h).view().view(), 1u);
  EXPECT_EQ(State(h).view().members(0).worker(), "w0");
}

TEST(GroupForms, AnewWhenACandidateIsGoneBeforeTheFirstView) {
  GroupHarness h(GroupHarness::Small());
  for (int i = 0; i < 4; ++i) h.StartProcess(i);
  h.DeliverToWorker(0);
  h.KillProcess(3);
  h.Advance(absl::Seconds(3));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_FORMING);
  h.StartProcess(3);
  h.Advance(absl::Seconds(1));
  ExpectAllServe(h);
}

TEST(Death, OfASessionThatAPeerLostTooIsAtOnce) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.KillProcess(2);
  h.Run();
  EXPECT_EQ(State(h).view().view(), 1u) << "a lost session alone may come back";
  h.SendPeerLost(0, {2});
  h.Run();
  const v1::Group state = State(h);
  EXPECT_EQ(state.view().view(), 2u);
  EXPECT_EQ(state.view().members_size(), 3);
  EXPECT_EQ(state.epoch(), 1u);
  EXPECT_EQ(state.state(), v1::GROUP_STATE_DEGRADED);
  EXPECT_EQ(state.missing_total(), 8) << "four layers of two experts";
  EXPECT_EQ(state.missing(0).expert(), 4);

  h.StartProcess(2);
  h.Advance(absl::Seconds(1));
  ExpectAllServe(h);
  EXPECT_EQ(State(h).view().view(), 3u);
  EXPECT_EQ(State(h).view().members(2).incarnation(), 5u) << "a new process is a new incarnation";
}

TEST(Death, OfASilentWorkerIsWhenItsLeaseRunsOut) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.BreakSession(1);
  h.Tick(absl::Milliseconds(1500));
  EXPECT_EQ(State(h).view().members_size(), 4);
  h.Tick(absl::Milliseconds(600));
  EXPECT_EQ(State(h).view().members_size(), 0) << "nobody sent a heartbeat";
  // Each is refused as what it was, and comes back as a new incarnation.
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(h.last_close(1).code(), absl::StatusCode::kAborted);
  ExpectAllServe(h);
}

TEST(Death, IsNotForAReconnectWithinTheLease) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.BreakSession(1);
  h.Advance(absl::Seconds(5));
  ExpectAllServe(h);
  EXPECT_EQ(State(h).view().view(), 1u);
}

TEST(Death, OfANewProcessWithTheNameReplacesTheOld) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.KillProcess(1);
  h.StartProcess(1);
  h.Advance(absl::Seconds(1));
  ExpectAllServe(h);
  EXPECT_EQ(State(h).view().members(1).incarnation(), 5u);
}

TEST(View, IsIssuedAgainWhenPeersCannotReachEachOther) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.SendPeerLost(0, {2});
  h.Advance(absl::Milliseconds(200));
  EXPECT_EQ(State(h).view().view(), 1u);
  h.Advance(absl::Milliseconds(300));
  ExpectAllServe(h);
  EXPECT_EQ(State(h).view().view(), 2u);
}

TEST(Hello, IsRefusedWithWhatDoesNotFit) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const auto refused = [&](auto change) {
    v1::Hello hello;
    hello.set_worker("w1");
    hello.set_role(v1::GROUP_ROLE_MIXED);
    hello.mutable_model()->set_name("m");
    hello.mutable_model()->set_fingerprint("f00d");
    hello.mutable_model()->set_num_moe_layers(4);
    hello.mutable_model()->set_num_experts(8);
    hello.mutable_model()->set_experts_per_token(2);
    hello.mutable_model()->set_expert_bytes(1000);
    hello.set_kernel_fingerprint("k");
    hello.set_combine(v1::COMBINE_MODE_EXACT);
    hello.set_slots(10);
    hello.set_staging_slots(2);
    hello.set_data_address("a:1");
    hello.set_serving_address("a:2");
    hello.set_report_stream(99);
    hello.set_version(Version());
    change(hello);
    Effects effects;
    h.group().Hello(1'000, hello, h.now(), effects);
    EXPECT_EQ(effects.steps.size(), 1u);
    const auto* close = std::get_if<CloseSession>(&effects.steps.at(0).sends.at(0));
    return close == nullptr ? absl::OkStatus() : close->status;
  };
  const auto expect = [&](auto change, absl::StatusCode code, const std::string& text) {
    const absl::Status status = refused(change);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  using Code = absl::StatusCode;
  expect([](v1::Hello& hello) {}, Code::kAlreadyExists, "incarnation 2 of w1 is connected");
  expect([](v1::Hello& hello) { hello.set_worker(""); }, Code::kInvalidArgument, "hello.worker");
  expect([](v1::Hello& hello) { hello.set_slots(0); }, Code::kInvalidArgument, "hello.slots: 0");
  expect([](v1::Hello& hello) { hello.set_speed(1025); }, Code::kInvalidArgument, "hello.speed: 1025, at most 1024");
  expect([](v1::Hello& hello) { hello.set_version("99.0.0"); }, Code::kFailedPrecondition, "hello.version: 99.0.0 and");
  expect([](v1::Hello& hello) { hello.clear_version(); }, Code::kInvalidArgument, "hello.version: ''");
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  expect([](v1::Hello& hello) { hello.set_view(kMax); }, Code::kInvalidArgument,
         "hello.view: 18446744073709551615, at");
  expect([](v1::Hello& hello) { hello.set_prepared_epoch(kMax); }, Code::kInvalidArgument, "hello.prepared_epoch: 18");
  expect([](v1::Hello& hello) { hello.set_epoch(4294967298); }, Code::kInvalidArgument,
         "hello.epoch: 4294967298, at most 4294967297, which is 2^32 above the group's");
  expect([](v1::Hello& hello) { hello.set_epoch(4294967297); }, Code::kAlreadyExists, "is connected");
  expect([](v1::Hello& hello) { hello.set_worker("w9"); }, Code::kFailedPrecondition, "none of the 4 workers");
  expect([](v1::Hello& hello) { hello.set_role(v1::GROUP_ROLE_DECODE); }, Code::kFailedPrecondition, "hello.role");
  expect([](v1::Hello& hello) { hello.set_last_term(7); }, Code::kUnavailable, "newer controller");
  expect([](v1::Hello& hello) { hello.set_incarnation(77); }, Code::kAborted, "hello.incarnation: 77");
  h.KillProcess(1);
  expect([](v1::Hello& hello) { hello.mutable_model()->set_fingerprint("beef"); }, Code::kFailedPrecondition,
         "beef (m) is not the group's f00d");
  expect([](v1::Hello& hello) { hello.set_kernel_fingerprint("other"); }, Code::kFailedPrecondition,
         "hello.kernel_fingerprint: 'other'");
  expect([](v1::Hello& hello) { hello.set_combine(v1::COMBINE_MODE_FAST); }, Code::kFailedPrecondition,
         "hello.combine");
  expect([](v1::Hello& hello) { hello.set_slots(5); }, Code::kFailedPrecondition, "the group's placement needs 8");
}

TEST(Rollout, BringsAPlanIntoForceInWaves) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const v1::Plan proposed = Propose(h);
  EXPECT_EQ(proposed.state(), v1::PLAN_STATE_PROPOSED);
  EXPECT_GT(proposed.waves_total(), 1);
  EXPECT_GT(proposed.balancedness_after(), proposed.balancedness_before());
  const v1::PlanEffect effect = proposed.effect();
  EXPECT_GT(effect.gain_ratio(), 0);
  EXPECT_GT(effect.gain_microseconds(), 0);
  EXPECT_DOUBLE_EQ(effect.busiest_tokens_before() - effect.busiest_tokens_after(), proposed.gain_tokens());
  EXPECT_LE(effect.busiest_tokens_bound(), effect.busiest_tokens_after());
  EXPECT_EQ(effect.node().moves() + effect.cross_node().moves() + effect.checkpoint().moves(), proposed.moves_total());
  EXPECT_EQ(effect.node().bytes() + effect.cross_node().bytes() + effect.checkpoint().bytes(), proposed.bytes_total());
  EXPECT_TRUE(effect.has_transfer_time());
  h.CrashNow();
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(PlanOf(h, proposed.id()).effect().SerializeAsString(), effect.SerializeAsString());
  ASSERT_TRUE(Approve(h, proposed.id()).ok());
  h.Advance(absl::Seconds(1));
  const v1::Plan done = PlanOf(h, proposed.id());
  EXPECT_EQ(done.state(), v1::PLAN_STATE_DONE) << done.ShortDebugString();
  EXPECT_EQ(done.waves_done(), done.waves_total());
  EXPECT_EQ(done.moves_done(), done.moves_total());
  EXPECT_EQ(done.bytes_done(), done.bytes_total());
  EXPECT_EQ(State(h).epoch(), 1u + done.waves_total());
  EXPECT_EQ(done.target_epoch(), State(h).epoch());
  EXPECT_NEAR(State(h).balancedness(), done.balancedness_after(), 1e-6);
  ExpectAllServe(h);
}

TEST(Rollout, FasterWorkersGetMore) {
  GroupHarness::Options options = GroupHarness::Small();
  options.slots = 18;
  options.speeds = {1, 0, 4};
  options.group.config.policy = "cost-aware";
  options.group.planning.max_moves = 0;
  GroupHarness h(options);
  h.FormGroup();
  const v1::Plan proposed = Propose(h);
  ASSERT_TRUE(Approve(h, proposed.id()).ok());
  h.Advance(absl::Seconds(1));
  ASSERT_EQ(PlanOf(h, proposed.id()).state(), v1::PLAN_STATE_DONE);
  EXPECT_NEAR(State(h).balancedness(), proposed.balancedness_after(), 1e-6);
  const std::vector<v1::Worker> workers = h.group().Workers(h.now());
  ASSERT_EQ(workers.size(), 4u);
  EXPECT_EQ(workers[1].speed(), 1u);
  EXPECT_EQ(workers[2].speed(), 4u);
  for (const int other : {0, 1, 3}) EXPECT_GT(workers[2].load_ratio(), 1.8 * workers[other].load_ratio()) << other;
}

TEST(Rollout, OfAnotherPlanOrStateIsRefused) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  EXPECT_EQ(h.CreatePlan().status().code(), absl::StatusCode::kFailedPrecondition) << "no load";
  EXPECT_EQ(Approve(h, "g-9").status().code(), absl::StatusCode::kNotFound);
  const v1::Plan first = Propose(h);
  const v1::Plan second = Propose(h);
  EXPECT_EQ(PlanOf(h, first.id()).state(), v1::PLAN_STATE_SUPERSEDED);
  EXPECT_THAT(std::string(Approve(h, first.id()).status().message()), HasSubstr("is SUPERSEDED, not PROPOSED"));
  SetMode(h, v1::GROUP_MODE_OBSERVE);
  EXPECT_EQ(Approve(h, second.id()).status().code(), absl::StatusCode::kFailedPrecondition);
  SetMode(h, v1::GROUP_MODE_AUTO);
  SetPaused(h, true);
  EXPECT_EQ(Approve(h, second.id()).status().code(), absl::StatusCode::kFailedPrecondition);
  SetPaused(h, false);
  EXPECT_TRUE(
      h.Operate([&](Group& g, Effects& effects) { return g.Reject(second.id(), "no", "ann", h.now(), effects); }).ok());
  EXPECT_EQ(PlanOf(h, second.id()).state(), v1::PLAN_STATE_REJECTED);
  EXPECT_EQ(PlanOf(h, second.id()).history().rbegin()->text(), "REJECTED: by ann: no");
  SetMode(h, v1::GROUP_MODE_APPROVE);
  const v1::Plan third = Propose(h);
  h.Advance(absl::Minutes(11));
  EXPECT_EQ(PlanOf(h, third.id()).state(), v1::PLAN_STATE_EXPIRED);
  EXPECT_EQ(State(h).epoch(), 1u);
}

TEST(Rollout, AProposalGivesWayWhenTheModeBecomesAuto) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const v1::Plan proposed = Propose(h);
  h.LoadWindowSkewed();
  SetMode(h, v1::GROUP_MODE_AUTO);
  h.Advance(absl::Minutes(2));
  EXPECT_EQ(PlanOf(h, proposed.id()).state(), v1::PLAN_STATE_SUPERSEDED);
  EXPECT_GT(State(h).epoch(), 1u);
}

TEST(Rollout, ADryRunKeepsNothing) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.LoadWindowSkewed();
  const auto plan = h.CreatePlan(/*dry_run=*/true);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->plan().waves_total(), 0);
  EXPECT_FALSE(h.NewestPlan().has_value());
}

TEST(Rollout, AbortsWhenAWorkerCannotPrepare) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const v1::Plan plan = Propose(h);
  h.RefuseWaves(2, "layer 1, expert 3 from w0: checksum differs");
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_ABORTED);
  EXPECT_THAT(PlanOf(h, plan.id()).reason(), HasSubstr("worker w2: layer 1, expert 3 from w0: checksum differs"));
  EXPECT_EQ(State(h).epoch(), 1u);
  EXPECT_TRUE(State(h).has_hold_off_until());
  ExpectAllServe(h);
}

TEST(Rollout, AbortsAtTheDeadline) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const v1::Plan plan = Propose(h);
  h.StallWaves(1, true);
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  h.Advance(absl::Minutes(9));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_PREPARING);
  h.Advance(absl::Minutes(2));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_ABORTED);
  h.StallWaves(1, false);
  const v1::Plan next = Propose(h);
  ASSERT_TRUE(Approve(h, next.id()).ok());
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(PlanOf(h, next.id()).state(), v1::PLAN_STATE_DONE);
  ExpectAllServe(h);
}

TEST(Rollout, AWorkersDeathBeforeTheRecordAborts) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const v1::Plan plan = Propose(h);
  h.StallWaves(1, true);
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  h.Run();
  h.KillProcess(3);
  h.Advance(absl::Seconds(3));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_ABORTED);
  EXPECT_EQ(State(h).epoch(), 1u);
  h.StartProcess(3);
  h.Advance(absl::Seconds(1));
  ExpectAllServe(h);
}

TEST(Rollout, AWorkersDeathAfterTheRecordCompletesTheWaveWithoutIt) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const v1::Plan plan = Propose(h);
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  // Until the record is there: then the leader dies with the order in its inbox.
  while (PlanOf(h, plan.id()).state() != v1::PLAN_STATE_COMMITTING) {
    for (int i = 0; i < 4; ++i) h.DeliverToWorker(i);
    for (int i = 3; i >= 0; --i) h.DeliverToController(i);
  }
  h.KillProcess(0);
  h.SendPeerLost(1, {0});
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_ABORTED) << "no further wave without the worker";
  EXPECT_EQ(PlanOf(h, plan.id()).waves_done(), 1);
  EXPECT_EQ(State(h).epoch(), 2u);
  for (int i = 1; i < 4; ++i) EXPECT_EQ(h.worker_epoch(i), 2u);
  h.StartProcess(0);
  h.Advance(absl::Seconds(1));
  ExpectAllServe(h);
  EXPECT_EQ(State(h).epoch(), 2u);
}

TEST(Rollout, PauseHoldsBetweenWaves) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const v1::Plan plan = Propose(h);
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  SetPaused(h, true);
  h.Advance(absl::Seconds(5));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_APPROVED);
  EXPECT_EQ(PlanOf(h, plan.id()).waves_done(), 1) << "the wave under way has ended";
  h.CrashNow();
  h.Advance(absl::Seconds(5));
  EXPECT_EQ(PlanOf(h, plan.id()).waves_done(), 1);
  SetPaused(h, false);
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_DONE);
  ExpectAllServe(h);
}

TEST(Rollback, RestoresThePlacementBeforeWithANewEpochAndHoldsOff) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  EXPECT_EQ(Rollback(h).status().code(), absl::StatusCode::kFailedPrecondition);
  const Placement before = h.group().placement();
  const v1::Plan plan = Propose(h);
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  h.Advance(absl::Seconds(1));
  const Placement after = h.group().placement();
  SetPaused(h, true);
  const auto rollback = Rollback(h);
  ASSERT_TRUE(rollback.ok()) << rollback.status();
  h.Advance(absl::Seconds(1));
  const v1::Plan done = PlanOf(h, rollback->id());
  EXPECT_EQ(done.state(), v1::PLAN_STATE_DONE) << done.ShortDebugString();
  EXPECT_EQ(done.reason(), "rollback by ann: because; every wave is in force");
  EXPECT_GT(h.group().placement().epoch, after.epoch);
  // The same experts on the same workers; slots may differ.
  const auto where = [](const Placement& p) {
    std::set<std::pair<ExpertId, int>> pairs;
    for (const Replica& r : p.replicas) pairs.insert({r.expert, r.worker});
    return pairs;
  };
  EXPECT_EQ(where(h.group().placement()), where(before));
  EXPECT_NE(where(h.group().placement()), where(after));
  EXPECT_TRUE(State(h).has_hold_off_until());
  ExpectAllServe(h);
}

TEST(Rollback, StopsARolloutAfterItsWave) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  const v1::Plan plan = Propose(h);
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  const auto rollback = Rollback(h);
  ASSERT_TRUE(rollback.ok()) << rollback.status();
  EXPECT_EQ(Rollback(h)->id(), rollback->id()) << "asked twice is once";
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_ABORTED);
  EXPECT_EQ(PlanOf(h, plan.id()).waves_done(), 1);
  EXPECT_EQ(PlanOf(h, rollback->id()).state(), v1::PLAN_STATE_DONE);
  EXPECT_NEAR(State(h).balancedness(), plan.balancedness_before(), 1e-6);
  ExpectAllServe(h);
}

TEST(Planning, AutoRollsOutWhatPaysAndThenRests) {
  GroupHarness::Options options = GroupHarness::Small();
  options.group.config.mode = v1::GROUP_MODE_AUTO;
  options.group.planning.interval = absl::Seconds(2);
  options.group.planning.min_tokens = 1'000;
  options.group.planning.plan_below = 0.95;
  GroupHarness h(options);
  h.FormGroup();
  h.Advance(absl::Seconds(10));
  EXPECT_FALSE(h.NewestPlan().has_value()) << "there is no load";
  h.LoadWindowSkewed();
  h.Advance(absl::Seconds(10));
  ASSERT_TRUE(h.NewestPlan().has_value());
  EXPECT_EQ(h.NewestPlan()->state(), v1::PLAN_STATE_DONE);
  const std::string id = h.NewestPlan()->id();
  h.Advance(absl::Seconds(60));
  EXPECT_EQ(h.NewestPlan()->id(), id) << "nothing is left to gain";
  ExpectAllServe(h);
}

TEST(Planning, ObserveProposesAndDoesNothing) {
  GroupHarness::Options options = GroupHarness::Small();
  options.group.config.mode = v1::GROUP_MODE_OBSERVE;
  options.group.planning.interval = absl::Seconds(2);
  GroupHarness h(options);
  h.FormGroup();
  h.LoadWindowSkewed();
  h.Advance(absl::Seconds(30));
  ASSERT_TRUE(h.NewestPlan().has_value());
  EXPECT_EQ(h.NewestPlan()->state(), v1::PLAN_STATE_PROPOSED);
  EXPECT_EQ(h.group().Plans().size(), 1u) << "one at a time";
  EXPECT_EQ(State(h).epoch(), 1u);
}

// Those whose plan or waves the store has.
std::set<std::string> StoredPlans(const GroupHarness& h) {
  std::set<std::string> ids;
  for (const auto& [key, value] : h.stored()) {
    if (key.rfind("plan/", 0) == 0 || key.rfind("wave/", 0) == 0) ids.insert(key.substr(5, key.find('/', 5) - 5));
  }
  return ids;
}

TEST(Planning, ProposalsThatNobodyTakesAreForgotten) {
  GroupHarness::Options options = GroupHarness::Small();
  options.group.config.mode = v1::GROUP_MODE_OBSERVE;
  options.group.planning.interval = absl::Seconds(2);
  options.group.planning.expiry = absl::Seconds(5);
  options.group.planning.keep_plans = 3;
  GroupHarness h(options);
  h.FormGroup();
  h.LoadWindowSkewed();
  h.Advance(absl::Minutes(1));
  EXPECT_GT(h.group().record().last_plan(), 8u);
  EXPECT_LE(h.group().Plans().size(), 4u);
  EXPECT_LE(StoredPlans(h).size(), 4u);
  for (int i = 0; i < 8; ++i) {
    const auto plan = h.CreatePlan();
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(h.group().Plans().size(), 4u) << "the ones before gave way";
    const auto rejected =
        h.Operate([&](Group& g, Effects& effects) { return g.Reject(plan->plan().id(), "", "ann", h.now(), effects); });
    ASSERT_TRUE(rejected.ok()) << rejected.status();
    EXPECT_EQ(rejected->state(), v1::PLAN_STATE_REJECTED);
  }
  EXPECT_EQ(h.group().Plans().size(), 3u);
  EXPECT_EQ(StoredPlans(h).size(), 3u);
}

TEST(Healing, GoesAroundAWorkerThatStaysAway) {
  GroupHarness h(GroupHarness::HealsAfter(absl::Seconds(30)));
  h.FormGroup();
  h.LoadWindowSkewed();
  h.KillProcess(3);
  h.Advance(absl::Seconds(25));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_DEGRADED) << "it may still come back";
  EXPECT_FALSE(h.NewestPlan().has_value());
  h.Advance(absl::Seconds(20));
  ASSERT_TRUE(h.NewestPlan().has_value());
  const v1::Plan plan = *h.NewestPlan();
  EXPECT_EQ(plan.state(), v1::PLAN_STATE_DONE) << plan.ShortDebugString();
  EXPECT_EQ(plan.policy(), "failure");
  EXPECT_EQ(plan.moves_total(), 8) << "one move for each expert that only it had";
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  EXPECT_EQ(State(h).missing_total(), 0);
  EXPECT_EQ(State(h).view().members_size(), 3);
  for (const Replica& replica : h.group().placement().replicas) EXPECT_NE(replica.worker, 3);
  // Planning goes on with three, and once is enough.
  EXPECT_TRUE(h.CreatePlan(/*dry_run=*/true).ok());
  h.Advance(absl::Minutes(5));
  EXPECT_EQ(h.NewestPlan()->id(), plan.id());

  // It comes back, empty-handed, and is planned for again.
  h.StartProcess(3);
  h.Advance(absl::Seconds(2));
  ExpectAllServe(h);
  h.LoadWindowSkewed();
  const auto spread = h.CreatePlan();
  ASSERT_TRUE(spread.ok()) << spread.status();
  h.Advance(absl::Seconds(2));
  ASSERT_TRUE(Approve(h, spread->plan().id()).ok());
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(PlanOf(h, spread->plan().id()).state(), v1::PLAN_STATE_DONE);
  EXPECT_TRUE(std::any_of(h.group().placement().replicas.begin(), h.group().placement().replicas.end(),
                          [](const Replica& r) { return r.worker == 3; }));
}

// With every slot taken, what the others have twice makes room through their staging slots: wave after wave. Until its
// wave is in force an expert belongs to the worker that is gone.
TEST(Healing, TakesSeveralWavesWhereRoomIsShort) {
  GroupHarness::Options options = GroupHarness::HealsAfter(absl::Seconds(30));
  options.group.config.mode = v1::GROUP_MODE_APPROVE;
  GroupHarness h(options);
  h.FormGroup();
  const v1::Plan spread = Propose(h);
  ASSERT_TRUE(Approve(h, spread.id()).ok());
  h.Advance(absl::Seconds(2));
  ASSERT_EQ(PlanOf(h, spread.id()).state(), v1::PLAN_STATE_DONE);
  h.KillProcess(3);
  h.Advance(absl::Seconds(5));
  const v1::Group degraded = State(h);
  ASSERT_EQ(degraded.state(), v1::GROUP_STATE_DEGRADED);
  h.Advance(absl::Seconds(40));
  const v1::Plan plan = *h.NewestPlan();
  ASSERT_EQ(plan.state(), v1::PLAN_STATE_PROPOSED) << plan.ShortDebugString();
  ASSERT_EQ(plan.policy(), "failure");
  ASSERT_EQ(plan.moves_total(), degraded.missing_total());
  ASSERT_GT(plan.waves_total(), 1);

  // A controller that dies on the way goes on from what is stored.
  h.StallWaves(0, true);
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  h.Run();
  h.CrashNow();
  h.StallWaves(0, false);
  h.BreakSession(0);
  h.Advance(absl::Seconds(5));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_DONE) << PlanOf(h, plan.id()).ShortDebugString();
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  EXPECT_EQ(State(h).missing_total(), 0);
  for (const Replica& replica : h.group().placement().replicas) EXPECT_NE(replica.worker, 3);
}

TEST(Healing, AnAbortedOneLeavesWhatItsWavesBroughtAndGoesOnLater) {
  GroupHarness::Options options = GroupHarness::HealsAfter(absl::Seconds(30));
  options.group.config.mode = v1::GROUP_MODE_APPROVE;
  GroupHarness h(options);
  h.FormGroup();
  const v1::Plan spread = Propose(h);
  ASSERT_TRUE(Approve(h, spread.id()).ok());
  h.Advance(absl::Seconds(2));
  h.KillProcess(3);
  h.Advance(absl::Seconds(40));
  const v1::Plan plan = *h.NewestPlan();
  ASSERT_EQ(plan.policy(), "failure");
  const int missing = State(h).missing_total();
  ASSERT_TRUE(Approve(h, plan.id()).ok());
  // One message at a time, until the first wave is in force.
  while (PlanOf(h, plan.id()).waves_done() == 0) {
    for (int i = 0; i < 3; ++i) {
      if (PlanOf(h, plan.id()).waves_done() > 0) break;
      h.DeliverToWorker(i);
      h.DeliverToController(i);
    }
  }
  h.RefuseWaves(0, "the disk is gone");
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(PlanOf(h, plan.id()).state(), v1::PLAN_STATE_ABORTED);
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_DEGRADED);
  EXPECT_GT(State(h).missing_total(), 0);
  EXPECT_LT(State(h).missing_total(), missing);
  h.RefuseWaves(0, "");
  SetMode(h, v1::GROUP_MODE_AUTO);
  h.Advance(absl::Minutes(2));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  EXPECT_EQ(State(h).missing_total(), 0);
  EXPECT_EQ(State(h).view().members_size(), 3);
}

TEST(Healing, AnOpenProposalDoesNotHoldItUp) {
  GroupHarness::Options options = GroupHarness::HealsAfter(absl::Seconds(30));
  options.group.config.mode = v1::GROUP_MODE_APPROVE;
  options.group.planning.expiry = absl::Hours(10);
  GroupHarness h(options);
  h.FormGroup();
  const std::string load = Propose(h).id();
  h.KillProcess(3);
  h.Advance(absl::Seconds(40));
  EXPECT_EQ(PlanOf(h, load).state(), v1::PLAN_STATE_SUPERSEDED);
  const std::string heal = h.NewestPlan()->id();
  EXPECT_EQ(PlanOf(h, heal).policy(), "failure");
  EXPECT_EQ(PlanOf(h, heal).state(), v1::PLAN_STATE_PROPOSED);
  h.Advance(absl::Minutes(5));
  EXPECT_EQ(h.NewestPlan()->id(), heal) << "one is enough";
  h.StartProcess(3);
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(PlanOf(h, heal).state(), v1::PLAN_STATE_SUPERSEDED) << "nobody is gone any more";
  ExpectAllServe(h);
}

TEST(Healing, WaitsForAWorkerThatComesBackInTime) {
  GroupHarness h(GroupHarness::HealsAfter(absl::Seconds(30)));
  h.FormGroup();
  h.KillProcess(3);
  h.Advance(absl::Seconds(20));
  h.StartProcess(3);
  h.Advance(absl::Seconds(60));
  EXPECT_FALSE(h.NewestPlan().has_value());
  ExpectAllServe(h);
}

TEST(Healing, SaysWhyItCannot) {
  GroupHarness::Options options = GroupHarness::HealsAfter(absl::Seconds(5));
  // As many as a fourth of the experts needs.
  options.slots = 10;
  GroupHarness h(options);
  h.FormGroup();
  h.KillProcess(3);
  h.Advance(absl::Seconds(30));
  EXPECT_FALSE(h.NewestPlan().has_value());
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_DEGRADED);
  // Two controllers later it forms and serves as before once the worker is back.
  h.CrashNow();
  h.Advance(absl::Seconds(30));
  h.StartProcess(3);
  h.Advance(absl::Seconds(2));
  ExpectAllServe(h);
}

TEST(Healing, AWholeGroupRestartsWithoutTheWorkerThatWasPlannedAround) {
  GroupHarness h(GroupHarness::HealsAfter(absl::Seconds(5)));
  h.FormGroup();
  h.KillProcess(3);
  h.Advance(absl::Seconds(20));
  ASSERT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  for (int i = 0; i < 3; ++i) h.KillProcess(i);
  h.Advance(absl::Seconds(10));
  EXPECT_EQ(State(h).view().members_size(), 0);
  for (int i = 0; i < 3; ++i) h.StartProcess(i);
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  EXPECT_EQ(State(h).view().members_size(), 3);
}

TEST(Healing, ARollbackToWhatOnlyTheGoneHadIsRefused) {
  GroupHarness h(GroupHarness::HealsAfter(absl::Seconds(5)));
  h.FormGroup();
  h.KillProcess(3);
  h.Advance(absl::Seconds(20));
  ASSERT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  const auto rollback = Rollback(h);
  ASSERT_TRUE(rollback.ok()) << rollback.status();
  h.Advance(absl::Seconds(2));
  const v1::Plan plan = PlanOf(h, rollback->id());
  EXPECT_EQ(plan.state(), v1::PLAN_STATE_ABORTED);
  EXPECT_THAT(plan.reason(), HasSubstr("are gone"));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
}

TEST(Planning, NoiseAloneMovesNothing) {
  GroupHarness::Options options = GroupHarness::Small();
  options.group.config.mode = v1::GROUP_MODE_AUTO;
  options.group.planning.interval = absl::Seconds(5);
  options.group.config.policy = "cost-aware";
  GroupHarness h(options);
  h.FormGroup();
  for (int round = 0; round < 40; ++round) {
    // The same skew with a little more or less each time.
    for (int i = 0; i < 4; ++i) h.SendReport(i, 10'000 + 97 * ((round * 7 + i * 3) % 11));
    h.Run();
    h.Advance(absl::Seconds(5));
  }
  EXPECT_LE(h.group().Plans().size(), 3u);
  const std::string id = h.NewestPlan()->id();
  EXPECT_LT(h.group().placement().epoch.value(), 8u);
  ExpectAllServe(h);
}

// A budget of a few moves: each plan goes on where the one before stopped, until nothing more is worth it; and then
// nobody asks again and again.
TEST(Planning, PlansThatTheirBudgetCutsShortComeToAnEnd) {
  GroupHarness::Options options = GroupHarness::Small();
  options.group.config.mode = v1::GROUP_MODE_AUTO;
  options.group.config.policy = "cost-aware";
  options.group.planning.interval = absl::Seconds(5);
  options.group.planning.max_moves = 2;
  options.group.load.window = absl::Hours(24);
  GroupHarness h(options);
  h.FormGroup();
  h.LoadWindowSkewed();
  h.Advance(absl::Minutes(5));
  const size_t plans = h.group().Plans().size();
  EXPECT_GT(plans, 1u);
  for (const v1::Plan& plan : h.group().Plans()) {
    EXPECT_EQ(plan.state(), v1::PLAN_STATE_DONE) << plan.ShortDebugString();
    EXPECT_LE(plan.moves_total(), 2);
    EXPECT_GT(plan.balancedness_after(), plan.balancedness_before());
  }
  const int jobs = h.plan_jobs();
  h.Advance(absl::Minutes(20));
  EXPECT_EQ(h.group().Plans().size(), plans);
  // 32 intervals are 160 s; the first few are closer.
  EXPECT_LE(h.plan_jobs() - jobs, 12);
  // Another load is planned for at once.
  for (int i = 0; i < 4; ++i) h.SendReport(i, 400'000, /*hottest=*/4);
  h.Advance(absl::Seconds(20));
  EXPECT_GT(h.group().Plans().size(), plans);
  ExpectAllServe(h);
}

// By scenario: its tokens, all layers together.
std::map<std::string, double> Remembered(GroupHarness& h) {
  std::map<std::string, double> out;
  for (const PlanScenario& s : h.group().PlanScenarios(h.now())) {
    if (s.remembered) out[s.name] = std::accumulate(s.tokens.begin(), s.tokens.end(), 0.0);
  }
  return out;
}

TEST(Planning, LoadsOfEarlierPhasesOutliveTheController) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.LoadWindowSkewed();
  h.Advance(absl::Seconds(5));
  for (int i = 0; i < 4; ++i) h.SendReport(i, 100'000, /*hottest=*/4);
  h.Advance(absl::Seconds(5));
  // The window itself is no memory.
  const auto before = Remembered(h);
  ASSERT_TRUE(before.contains("decode@1")) << before.size();
  EXPECT_FALSE(before.contains("decode"));
  h.CrashNow();
  EXPECT_EQ(Remembered(h), before);
  h.Advance(absl::Seconds(5));
  EXPECT_EQ(Remembered(h), before);

  // When the window has passed, what is left is the memory: every token once, those of two controllers together.
  for (int i = 0; i < 4; ++i) h.SendReport(i, 50'000, /*hottest=*/4);
  h.Advance(absl::Minutes(6));
  const auto after = Remembered(h);
  ASSERT_TRUE(after.contains("decode"));
  double a_token = 0;
  for (int e = 0; e < 8; ++e) a_token += 1.0 / (e + 1);
  EXPECT_NEAR(after.at("decode"), 4 * (10'000 + 100'000 + 50'000) * 4 * a_token, 4 * 3 * 4 * 8);
  h.CrashNow();
  EXPECT_EQ(Remembered(h), after);
}

TEST(Telemetry, ACounterOfTasksHasSoManyAndNoMore) {
  GroupHarness::Options options = GroupHarness::Small();
  options.group.load = {.window = absl::Seconds(10), .bucket = absl::Seconds(10), .max_tasks = 2};
  GroupHarness h(options);
  h.FormGroup();
  for (int round = 0; round < 6; ++round) {
    // What the window keeps apart is new each time.
    h.SendTasks(0, {{absl::StrCat("a", round), 10}, {absl::StrCat("b", round), 10}});
    h.Advance(absl::Seconds(25));
  }
  double counted = 0;
  for (const auto& [task, tokens] : h.task_tokens()) counted += tokens;
  EXPECT_EQ(counted, h.tokens_reported());
  EXPECT_EQ(h.task_tokens().size(), 5u) << "twice what is kept apart, and the rest";
  EXPECT_EQ(h.task_tokens().at("_other"), 80);
  EXPECT_EQ(h.task_tokens().at("b1"), 10);
}

TEST(Telemetry, IsNoNewerThanNowWhateverAWorkersClockSays) {
  GroupHarness::Options options = GroupHarness::Small();
  options.form = [](google::protobuf::Message& message) {
    auto* request = dynamic_cast<v1::ConnectRequest*>(&message);
    if (request == nullptr || !request->has_load_report()) return;
    v1::LoadReport& report = *request->mutable_load_report();
    report.mutable_end()->set_seconds(report.end().seconds() + 3600);
  };
  GroupHarness h(options);
  h.FormGroup();
  h.SendReport(0, 1000);
  h.Run();
  EXPECT_EQ(h.group().newest_report(), h.now());
}

TEST(Telemetry, CountsOnceAcrossRestartsAndReconnects) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 4; ++i) h.SendReport(i, 100 + round);
    if (round % 3 == 0) h.BreakSession(round % 4);
    if (round % 5 == 0) h.CrashNow();
    h.Advance(absl::Milliseconds(700));
  }
  h.Advance(absl::Seconds(5));
  EXPECT_EQ(State(h).window_tokens(), h.tokens_reported());
}

}  // namespace
}  // namespace ballast
