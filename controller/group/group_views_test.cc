// Scripts: views that do not work, and what becomes of those they fail because of.
#include <string>
#include <vector>

#include "controller/group/group.h"
#include "controller/group/group_harness.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

v1::Group State(GroupHarness& h) { return h.group().Describe(h.now()); }

TEST(PutOut, IsAWorkerThatFailsViewAfterView) {
  GroupHarness h(GroupHarness::HealsAfter(absl::Seconds(30)));
  h.FormGroup();
  h.LoadWindowSkewed();
  h.FailViews(2, "out of memory");
  h.SendPeerLost(0, {2});
  h.Advance(absl::Seconds(9));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_DEGRADED) << State(h).ShortDebugString();
  EXPECT_EQ(State(h).view().members_size(), 3);
  EXPECT_EQ(h.last_close(2).code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(h.last_close(2).message()), HasSubstr("4 views in a row failed because of it"));

  // It may try again, more and more seldom, and in between the others take over what it held.
  h.Advance(absl::Minutes(3));
  ASSERT_TRUE(h.NewestPlan().has_value());
  EXPECT_EQ(h.NewestPlan()->policy(), "failure");
  EXPECT_EQ(h.NewestPlan()->state(), v1::PLAN_STATE_DONE) << h.NewestPlan()->ShortDebugString();
  const uint64_t view = State(h).view().view();
  int serving = 0;
  constexpr int kSeconds = 30 * 60;
  for (int second = 0; second < kSeconds; ++second) {
    h.Advance(absl::Seconds(1));
    serving += State(h).state() == v1::GROUP_STATE_SERVING ? 1 : 0;
  }
  EXPECT_GT(serving, kSeconds * 95 / 100);
  EXPECT_LT(State(h).view().view() - view, 50u);

  h.FailViews(2, "");
  h.Advance(absl::Minutes(11));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  EXPECT_EQ(State(h).view().members_size(), 4);
}

TEST(PutOut, IsAWorkerThatMostHaveLostAndThatHasLostThem) {
  GroupHarness h(GroupHarness::HealsAfter(absl::Hours(1)));
  h.FormGroup();
  for (const int other : {0, 1, 3}) h.FailViews(other, "unreachable", {2});
  h.FailViews(2, "unreachable", {0, 1, 3});
  h.SendPeerLost(0, {2});
  h.Advance(absl::Seconds(9));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_DEGRADED) << State(h).ShortDebugString();
  EXPECT_EQ(State(h).view().members_size(), 3);
  for (int i = 0; i < 4; ++i) h.FailViews(i, "");
  h.Advance(absl::Seconds(15));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
  EXPECT_EQ(State(h).view().members_size(), 4);
}

// What one says of another, what is lost because one left first, and what most say of themselves.
TEST(PutOut, IsNobodyWhereItCannotBeTold) {
  const auto expect_nobody = [](const std::string& name, auto fail) {
    SCOPED_TRACE(name);
    GroupHarness h(GroupHarness::HealsAfter(absl::Hours(1)));
    h.FormGroup();
    fail(h);
    h.SendPeerLost(0, {2});
    h.Advance(absl::Minutes(2));
    EXPECT_EQ(State(h).view().members_size(), 4);
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(h.last_close(i).ok()) << h.last_close(i);
    for (int i = 0; i < 4; ++i) h.FailViews(i, "");
    h.Advance(absl::Seconds(10));
    EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING) << State(h).ShortDebugString();
  };
  expect_nobody("one accuser", [](GroupHarness& h) { h.FailViews(0, "lost", {2}); });
  expect_nobody("one left first", [](GroupHarness& h) {
    h.FailViews(0, "late", {2});
    for (const int other : {1, 2, 3}) h.FailViews(other, "closed", {0});
  });
  expect_nobody("most fail", [](GroupHarness& h) {
    for (const int failing : {0, 1, 3}) h.FailViews(failing, "out of memory");
  });
}

// Four failures, but with a view that works for a while in between.
TEST(PutOut, IsNobodyForFailuresFarApart) {
  GroupHarness h(GroupHarness::HealsAfter(absl::Hours(1)));
  h.FormGroup();
  for (int round = 0; round < 8; ++round) {
    h.Advance(absl::Seconds(15));
    h.SendPeerLost(2, {});
    h.Advance(absl::Seconds(1));
    ASSERT_EQ(State(h).state(), v1::GROUP_STATE_SERVING) << round;
    ASSERT_EQ(State(h).view().members_size(), 4) << round;
  }
  EXPECT_TRUE(h.last_close(2).ok()) << h.last_close(2);
}

TEST(Start, OfAWholeGroupDoesNotWaitForEverForOneThatIsGone) {
  GroupHarness h(GroupHarness::HealsAfter(absl::Seconds(30)));
  h.FormGroup();
  h.LoadWindowSkewed();
  for (int i = 0; i < 4; ++i) h.KillProcess(i);
  h.Advance(absl::Minutes(2));
  ASSERT_EQ(State(h).view().members_size(), 0);
  for (int i = 0; i < 2; ++i) h.StartProcess(i);
  h.Advance(absl::Minutes(4));
  h.StartProcess(2);
  h.Advance(absl::Minutes(4));
  EXPECT_EQ(State(h).view().members_size(), 0) << "the last one came 4 minutes ago, and more may come";
  h.Advance(absl::Minutes(1) + absl::Seconds(20));
  EXPECT_EQ(State(h).view().members_size(), 3);
  EXPECT_NE(State(h).missing_total(), 0) << "whose experts are not rebuilt at once";
  h.Advance(absl::Seconds(30));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING) << State(h).ShortDebugString();
  EXPECT_EQ(State(h).view().members_size(), 3);
  EXPECT_EQ(State(h).missing_total(), 0);
  EXPECT_EQ(h.NewestPlan()->policy(), "failure");
  h.StartProcess(3);
  h.Advance(absl::Seconds(2));
  EXPECT_EQ(State(h).view().members_size(), 4);
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_SERVING);
}

TEST(Start, WithoutRoomForWhatTheGoneHeldIsDegraded) {
  GroupHarness::Options options = GroupHarness::HealsAfter(absl::Seconds(30));
  options.slots = 10;
  GroupHarness h(options);
  h.FormGroup();
  for (int i = 0; i < 4; ++i) h.KillProcess(i);
  h.Advance(absl::Seconds(5));
  for (int i = 0; i < 3; ++i) h.StartProcess(i);
  h.Advance(absl::Minutes(6));
  EXPECT_EQ(State(h).state(), v1::GROUP_STATE_DEGRADED);
  EXPECT_EQ(State(h).missing_total(), 8);
}

// A worker dies right after the commit record, and the others take longer to build connections than a committed wave
// waits for a view.
TEST(Commit, ComesIntoForceWithMembersThatTakeLongToJoin) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.LoadWindowSkewed();
  const auto plan = h.CreatePlan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::string id = plan->plan().id();
  ASSERT_TRUE(h.Operate([&](Group& g, Effects& effects) { return g.Approve(id, "ann", h.now(), effects); }).ok());
  while (h.group().Plan(id)->plan().state() != v1::PLAN_STATE_COMMITTING) {
    for (int i = 0; i < 4; ++i) h.DeliverToWorker(i);
    for (int i = 3; i >= 0; --i) h.DeliverToController(i);
  }
  // A controller that stood still heard nobody say that it is in force.
  const uint64_t view = State(h).view().view();
  ASSERT_TRUE(h.Operate([&](Group& g, Effects& effects) {
                 g.StoodStill(absl::Seconds(20), h.now() + absl::Seconds(20), effects);
                 return absl::OkStatus();
               }).ok());
  h.Tick(absl::Seconds(20));
  EXPECT_EQ(State(h).view().view(), view);
  h.SetInstallTime(absl::Seconds(15));
  h.KillProcess(0);
  h.SendPeerLost(1, {0});
  h.Advance(absl::Minutes(1));
  const v1::Group state = State(h);
  EXPECT_EQ(state.epoch(), 2u);
  EXPECT_NE(state.state(), v1::GROUP_STATE_FORMING);
  for (int i = 1; i < 4; ++i) {
    EXPECT_EQ(h.worker_view(i), state.view().view());
    EXPECT_EQ(h.worker_epoch(i), 2u);
  }
  EXPECT_EQ(h.group().Plan(id)->plan().waves_done(), 1);
}

}  // namespace
}  // namespace ballast
