// Workers that are to go: what they hold is somewhere else before they are out.
#include <algorithm>
#include <string>
#include <vector>

#include "controller/group/group.h"
#include "controller/group/group_harness.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// `slots` 14: three of the four workers hold everything; 18: two of them do; 10: all four are needed.
GroupHarness::Options WithSlots(int slots) {
  GroupHarness::Options options = GroupHarness::Small();
  options.slots = slots;
  return options;
}

v1::Group State(GroupHarness& h) { return h.group().Describe(h.now()); }

v1::Worker WorkerOf(GroupHarness& h, int index) {
  for (const v1::Worker& worker : h.group().Workers(h.now())) {
    if (worker.name() == GroupHarness::Name(index)) return worker;
  }
  return {};
}

int Held(GroupHarness& h, int index) { return WorkerOf(h, index).slots_used(); }

absl::StatusOr<v1::Worker> Drain(GroupHarness& h, const std::string& name) {
  return h.Operate([&](Group& g, Effects& effects) { return g.DrainWorker(name, h.now(), effects); });
}
absl::StatusOr<v1::Worker> Undrain(GroupHarness& h, const std::string& name) {
  return h.Operate([&](Group& g, Effects& effects) { return g.UndrainWorker(name, h.now(), effects); });
}
absl::StatusOr<v1::Plan> Approve(GroupHarness& h, const std::string& id) {
  return h.Operate([&](Group& g, Effects& effects) { return g.Approve(id, "", h.now(), effects); });
}

// Time passes, and every expert has a live replica all the while.
void AdvanceServing(GroupHarness& h, absl::Duration by) {
  for (absl::Duration passed; passed < by; passed += absl::Milliseconds(100)) {
    h.Advance(absl::Milliseconds(100));
    ASSERT_EQ(State(h).missing_total(), 0) << State(h).ShortDebugString();
  }
}

TEST(Leaving, WaitsForItsReplicasToBeElsewhereAndForItsRequests) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.LoadWindowSkewed();
  h.SetRequests(3, 2);
  h.SendLeaving(3);
  AdvanceServing(h, absl::Seconds(2));
  ASSERT_TRUE(h.NewestPlan().has_value());
  const v1::Plan plan = *h.NewestPlan();
  EXPECT_EQ(plan.state(), v1::PLAN_STATE_DONE) << plan.ShortDebugString();
  EXPECT_EQ(plan.policy(), "drain");
  EXPECT_EQ(plan.moves_total(), 8) << "one for each expert that only it had";
  EXPECT_THAT(plan.reason(), HasSubstr("w3 is to go"));
  int moves = 0;
  for (const auto& [key, value] : h.stored()) {
    store::WaveRecord wave;
    if (key.rfind("wave/", 0) != 0) continue;
    ASSERT_TRUE(wave.ParseFromString(value));
    for (const v1::Move& move : wave.moves()) {
      EXPECT_EQ(move.source(), "w3") << "it is still there to copy from";
      ++moves;
    }
  }
  EXPECT_EQ(moves, 8);
  EXPECT_EQ(Held(h, 3), 0);
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_EMPTY);
  EXPECT_EQ(WorkerOf(h, 3).drain(), v1::DRAIN_STATE_EMPTY);
  EXPECT_EQ(State(h).view().members_size(), 4) << "its requests need it";

  h.SetRequests(3, 0);
  AdvanceServing(h, absl::Seconds(1));
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_OUT);
  EXPECT_EQ(State(h).view().members_size(), 3);
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  h.KillProcess(3);
  h.Tick(absl::Milliseconds(1));
  EXPECT_EQ(WorkerOf(h, 3).state(), v1::WORKER_STATE_DEAD) << "without waiting for its lease";

  // Its successor is taken in, holds nothing, and is planned for.
  h.StartProcess(3);
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(State(h).view().members_size(), 4);
  EXPECT_EQ(WorkerOf(h, 3).state(), v1::WORKER_STATE_SERVING);
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_UNSPECIFIED);
  h.LoadWindowSkewed();
  const auto spread = h.CreatePlan();
  ASSERT_TRUE(spread.ok()) << spread.status();
  ASSERT_TRUE(Approve(h, spread->plan().id()).ok());
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_GT(Held(h, 3), 0);
}

TEST(Leaving, EachInTurnComesBackToAWholeGroup) {
  GroupHarness::Options options = WithSlots(14);
  options.group.config.mode = v1::GROUP_MODE_AUTO;
  options.group.planning.interval = absl::Seconds(1);
  options.group.planning.abort_hold_off = absl::Hours(1);
  GroupHarness h(options);
  h.FormGroup();
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(GroupHarness::Name(i));
    h.LoadWindowSkewed();
    h.SendLeaving(i);
    AdvanceServing(h, absl::Seconds(3));
    ASSERT_EQ(h.worker_drain(i), v1::DRAIN_STATE_OUT);
    h.KillProcess(i);
    h.StartProcess(i);
    AdvanceServing(h, absl::Seconds(2));
    ASSERT_EQ(State(h).view().members_size(), 4);
    h.LoadWindowSkewed();
    AdvanceServing(h, absl::Seconds(5));
    EXPECT_GT(Held(h, i), 0) << "it gets load again by itself";
  }
}

TEST(Leaving, NeedsNoApprovalAndNoPauseOrHoldOffHoldsItUp) {
  for (const v1::GroupMode mode : {v1::GROUP_MODE_OBSERVE, v1::GROUP_MODE_APPROVE, v1::GROUP_MODE_AUTO}) {
    SCOPED_TRACE(v1::GroupMode_Name(mode));
    GroupHarness h(WithSlots(14));
    h.FormGroup();
    h.LoadWindowSkewed();
    const auto plan = h.CreatePlan();
    ASSERT_TRUE(plan.ok()) << plan.status();
    ASSERT_TRUE(Approve(h, plan->plan().id()).ok());
    h.Advance(absl::Seconds(1));
    h.Operate([&](Group& g, Effects& effects) { return g.Rollback("", "", h.now(), effects); }).IgnoreError();
    h.Advance(absl::Seconds(1));
    ASSERT_TRUE(State(h).has_hold_off_until());
    h.Operate([&](Group& g, Effects& effects) {
      g.SetMode(mode, h.now(), effects);
      g.SetPaused(true, h.now(), effects);
      return 0;
    });
    h.SendLeaving(3);
    AdvanceServing(h, absl::Seconds(2));
    EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_OUT);
    EXPECT_TRUE(State(h).paused());
  }
}

TEST(Leaving, WithoutRoomElsewhereTakesItsReplicasAlongAndSaysSo) {
  GroupHarness h(WithSlots(10));
  h.FormGroup();
  h.SetRequests(3, 1);
  h.SendLeaving(3);
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_STUCK);
  EXPECT_THAT(h.worker_drain_reason(3), AllOf(HasSubstr("no slot left for 8 experts"), HasSubstr("layer 0, expert 6")));
  EXPECT_EQ(WorkerOf(h, 3).drain_reason(), h.worker_drain_reason(3));
  h.SetRequests(3, 0);
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_OUT);
  EXPECT_EQ(State(h).missing_total(), 8);
  h.KillProcess(3);
  h.StartProcess(3);
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
}

TEST(Leaving, OfTheLastWorkersFindsNobodyToTakeOver) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  for (int i = 0; i < 4; ++i) h.SetRequests(i, 1);
  for (int i = 0; i < 4; ++i) h.SendLeaving(i);
  AdvanceServing(h, absl::Seconds(3));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(h.worker_drain(i), v1::DRAIN_STATE_STUCK) << i;
  EXPECT_EQ(h.worker_drain_reason(0), "no other worker serves");
  for (int i = 0; i < 4; ++i) h.SetRequests(i, 0);
  h.Advance(absl::Seconds(1));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(h.worker_drain(i), v1::DRAIN_STATE_OUT) << i;
}

TEST(Leaving, TwoAtOnceAreEmptiedTogether) {
  GroupHarness h(WithSlots(18));
  h.FormGroup();
  h.SetRequests(2, 1);
  h.SetRequests(3, 1);
  h.SendLeaving(2);
  h.SendLeaving(3);
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(h.worker_drain(2), v1::DRAIN_STATE_EMPTY);
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_EMPTY);
  EXPECT_EQ(h.NewestPlan()->moves_total(), 16) << "none of them twice: " << h.NewestPlan()->ShortDebugString();
}

TEST(Leaving, WhereThereIsRoomForOneTheFirstToAskIsEmptied) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.SetRequests(2, 1);
  h.SetRequests(3, 1);
  h.SendLeaving(3);
  h.Run();
  h.SendLeaving(2);
  AdvanceServing(h, absl::Seconds(4));
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_EMPTY);
  EXPECT_EQ(h.worker_drain(2), v1::DRAIN_STATE_STUCK);
  EXPECT_EQ(Held(h, 3), 0);
  EXPECT_EQ(Held(h, 2), 8) << "what is to go is given nothing";
}

TEST(Leaving, ARolloutForTheLoadGivesWay) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.LoadWindowSkewed();
  const auto plan = h.CreatePlan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  h.StallWaves(0, true);
  ASSERT_TRUE(Approve(h, plan->plan().id()).ok());
  h.Advance(absl::Seconds(1));
  ASSERT_EQ(h.group().Plan(plan->plan().id())->plan().state(), v1::PLAN_STATE_PREPARING);
  h.SendLeaving(3);
  h.Run();
  EXPECT_EQ(h.group().Plan(plan->plan().id())->plan().state(), v1::PLAN_STATE_ABORTED);
  EXPECT_FALSE(State(h).has_hold_off_until()) << "it did not fail";
  h.StallWaves(0, false);
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_OUT);
}

TEST(Leaving, PlansForTheLoadWait) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.LoadWindowSkewed();
  h.SetRequests(3, 1);
  h.SendLeaving(3);
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_THAT(std::string(h.CreatePlan().status().message()), HasSubstr("being drained"));
}

TEST(Leaving, ADeathBeforeTheEndIsADeath) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.StallWaves(0, true);
  h.SendLeaving(3);
  AdvanceServing(h, absl::Seconds(1));
  ASSERT_EQ(h.NewestPlan()->state(), v1::PLAN_STATE_PREPARING);
  h.KillProcess(3);
  h.SendPeerLost(0, {3});
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(h.NewestPlan()->state(), v1::PLAN_STATE_ABORTED);
  EXPECT_EQ(State(h).missing_total(), 8);
  h.StallWaves(0, false);
  h.StartProcess(3);
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  EXPECT_EQ(Held(h, 3), 8);
}

TEST(Leaving, ADeathOfAnotherIsPlannedAroundToo) {
  GroupHarness h(WithSlots(18));
  h.FormGroup();
  h.StallWaves(0, true);
  h.SendLeaving(3);
  AdvanceServing(h, absl::Seconds(1));
  h.KillProcess(1);
  h.SendPeerLost(0, {1});
  h.StallWaves(0, false);
  h.Advance(absl::Seconds(4));
  EXPECT_EQ(State(h).missing_total(), 0);
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_OUT);
  EXPECT_EQ(State(h).view().members_size(), 2);
}

TEST(Leaving, ASessionThatIsLostIsNoDeath) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.SetRequests(3, 1);
  h.SendLeaving(3);
  h.Run();
  h.BreakSession(3);
  h.Tick(absl::Milliseconds(1));
  EXPECT_EQ(State(h).view().members_size(), 4);
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(h.worker_drain(3), v1::DRAIN_STATE_EMPTY);
}

TEST(Leaving, OthersHearThatItTakesNoRequests) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.Advance(absl::Seconds(1));
  EXPECT_EQ(h.worker_ack(0).loads_size(), 0);
  h.SetRequests(3, 1);
  h.SendLeaving(3);
  h.Advance(absl::Seconds(1));
  ASSERT_EQ(h.worker_ack(0).loads_size(), 3);
  for (const v1::MemberLoad& load : h.worker_ack(0).loads()) EXPECT_EQ(load.draining(), load.worker() == "w3");
}

TEST(DrainWorker, EmptiesAWorkerAndKeepsItSo) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  const auto drained = Drain(h, "w2");
  ASSERT_TRUE(drained.ok()) << drained.status();
  EXPECT_EQ(drained->drain(), v1::DRAIN_STATE_MOVING);
  EXPECT_TRUE(drained->cordoned());
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(Held(h, 2), 0);
  EXPECT_EQ(h.worker_drain(2), v1::DRAIN_STATE_EMPTY);
  EXPECT_EQ(State(h).view().members_size(), 4) << "its process goes on";
  EXPECT_TRUE(Drain(h, "w2").ok()) << "again";

  // Across restarts of both, and through plans for the load.
  h.CrashNow();
  h.KillProcess(2);
  h.StartProcess(2);
  AdvanceServing(h, absl::Seconds(4));
  EXPECT_EQ(State(h).view().members_size(), 4);
  EXPECT_EQ(h.worker_drain(2), v1::DRAIN_STATE_EMPTY);
  h.LoadWindowSkewed();
  const auto plan = h.CreatePlan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_TRUE(Approve(h, plan->plan().id()).ok());
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(Held(h, 2), 0);

  const auto back = Undrain(h, "w2");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->drain(), v1::DRAIN_STATE_UNSPECIFIED);
  EXPECT_FALSE(back->cordoned());
  h.Run();
  EXPECT_EQ(h.worker_drain(2), v1::DRAIN_STATE_UNSPECIFIED);
  h.LoadWindowSkewed();
  const auto spread = h.CreatePlan();
  ASSERT_TRUE(spread.ok()) << spread.status();
  ASSERT_TRUE(Approve(h, spread->plan().id()).ok());
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_GT(Held(h, 2), 0);
}

TEST(DrainWorker, OfADeadOneIsPlannedAroundAtOnce) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.KillProcess(2);
  h.SendPeerLost(0, {2});
  h.Advance(absl::Seconds(1));
  ASSERT_EQ(State(h).missing_total(), 8);
  ASSERT_TRUE(Drain(h, "w2").ok());
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(State(h).missing_total(), 0);
}

TEST(DrainWorker, WithoutRoomIsTriedAgainWhenAnotherViewHasSome) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  ASSERT_TRUE(Drain(h, "w3").ok());
  AdvanceServing(h, absl::Seconds(2));
  ASSERT_TRUE(Drain(h, "w2").ok());
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(WorkerOf(h, 2).drain(), v1::DRAIN_STATE_STUCK);
  EXPECT_THAT(WorkerOf(h, 2).drain_reason(), HasSubstr("no slot left"));
  ASSERT_TRUE(Undrain(h, "w3").ok());
  AdvanceServing(h, absl::Seconds(2));
  EXPECT_EQ(WorkerOf(h, 2).drain(), v1::DRAIN_STATE_EMPTY);
}

TEST(DrainWorker, ThatFailsAgainAndAgainIsStuckUntilAnotherView) {
  GroupHarness h(WithSlots(14));
  h.FormGroup();
  h.RefuseWaves(1, "checksum differs");
  ASSERT_TRUE(Drain(h, "w3").ok());
  AdvanceServing(h, absl::Seconds(20));
  EXPECT_EQ(WorkerOf(h, 3).drain(), v1::DRAIN_STATE_MOVING) << "it may be over soon";
  AdvanceServing(h, absl::Minutes(5));
  EXPECT_EQ(WorkerOf(h, 3).drain(), v1::DRAIN_STATE_STUCK);
  EXPECT_THAT(WorkerOf(h, 3).drain_reason(),
              AllOf(HasSubstr("6 rollouts in a row failed"), HasSubstr("worker w1: checksum differs")));
  EXPECT_EQ(h.group().Plans().size(), 6u);
  h.RefuseWaves(1, "");
  h.SendPeerLost(0, {2});
  AdvanceServing(h, absl::Seconds(5));
  EXPECT_EQ(WorkerOf(h, 3).drain(), v1::DRAIN_STATE_EMPTY);
}

TEST(DrainWorker, OfTwoThatFailBothAreStuck) {
  GroupHarness h(WithSlots(18));
  h.FormGroup();
  h.RefuseWaves(1, "checksum differs");
  ASSERT_TRUE(Drain(h, "w2").ok());
  ASSERT_TRUE(Drain(h, "w3").ok());
  AdvanceServing(h, absl::Minutes(5));
  EXPECT_EQ(WorkerOf(h, 2).drain(), v1::DRAIN_STATE_STUCK);
  EXPECT_EQ(WorkerOf(h, 3).drain(), v1::DRAIN_STATE_STUCK);
  EXPECT_LE(h.group().Plans().size(), 13u);
}

TEST(DrainWorker, OfNobodyIsRefused) {
  GroupHarness h(WithSlots(14));
  EXPECT_EQ(Drain(h, "w0").status().code(), absl::StatusCode::kFailedPrecondition);
  h.FormGroup();
  EXPECT_EQ(Drain(h, "w9").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Drain(h, "w9").status().message()), AllOf(HasSubstr("worker"), HasSubstr("w9")));
  EXPECT_EQ(Undrain(h, "w9").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ballast
