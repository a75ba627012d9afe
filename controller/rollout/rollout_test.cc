#include "controller/rollout/rollout.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ballast {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1000);

RolloutFacts In(v1::PlanState state) {
  return {.state = state,
          .waves_done = 1,
          .waves_total = 3,
          .group_complete = true,
          .view_installed = true,
          .members = {{true, true, true}, {true, true, true}},
          .deadline = kNow + absl::Seconds(1)};
}

struct Case {
  std::string name;
  RolloutFacts facts;
  RolloutStep step;
  bool failed = false;
};

TEST(DecideRollout, Table) {
  std::vector<Case> cases;
  const auto add = [&](std::string name, v1::PlanState state, RolloutStep step, auto change, bool failed = false) {
    RolloutFacts facts = In(state);
    change(facts);
    cases.push_back({std::move(name), facts, step, failed});
  };
  const auto same = [](RolloutFacts&) {};
  const v1::PlanState approved = v1::PLAN_STATE_APPROVED;
  add("next wave", approved, RolloutStep::kBeginWave, same);
  add("view not installed", approved, RolloutStep::kNothing, [](auto& f) { f.view_installed = false; });
  add("paused", approved, RolloutStep::kNothing, [](auto& f) { f.paused = true; });
  add("paused, but ordered", approved, RolloutStep::kBeginWave, [](auto& f) { f.paused = f.ordered = true; });
  add("a worker is gone", approved, RolloutStep::kAbort, [](auto& f) { f.group_complete = false; });
  add("stopped", approved, RolloutStep::kAbort, [](auto& f) { f.stop = true; });
  add("paused and stopped", approved, RolloutStep::kAbort, [](auto& f) { f.stop = f.paused = true; });
  add("last wave done", approved, RolloutStep::kFinish, [](auto& f) { f.waves_done = 3; });
  add("last wave done, a worker is gone", approved, RolloutStep::kFinish,
      [](auto& f) { f.waves_done = 3, f.group_complete = false; });
  add("rollback not worked out", approved, RolloutStep::kWorkOut,
      [](auto& f) { f.ordered = true, f.waves_known = false; });
  add("rollback being worked out", approved, RolloutStep::kNothing,
      [](auto& f) { f.ordered = f.working_out = true, f.waves_known = false; });

  const v1::PlanState preparing = v1::PLAN_STATE_PREPARING;
  add("all prepared", preparing, RolloutStep::kRecordPrepared, same);
  add("one not prepared", preparing, RolloutStep::kNothing, [](auto& f) { f.members[1].prepared = false; });
  add("prepared, disconnected", preparing, RolloutStep::kNothing, [](auto& f) { f.members[1].connected = false; });
  add(
      "deadline", preparing, RolloutStep::kAbort, [](auto& f) { f.members[1].prepared = false, f.deadline = kNow; },
      true);
  add("all prepared at the deadline", preparing, RolloutStep::kRecordPrepared, [](auto& f) { f.deadline = kNow; });
  add(
      "failure", preparing, RolloutStep::kAbort, [](auto& f) { f.failure = "x"; }, true);
  add("view changed", preparing, RolloutStep::kAbort, [](auto& f) { f.view_changed = true; });
  add("a worker leaves", preparing, RolloutStep::kAbort, [](auto& f) { f.group_complete = false; });
  add("paused while preparing", preparing, RolloutStep::kRecordPrepared, [](auto& f) { f.paused = true; });
  add("stopped while preparing", preparing, RolloutStep::kRecordPrepared, [](auto& f) { f.stop = true; });

  const v1::PlanState prepared = v1::PLAN_STATE_PREPARED;
  add("record it", prepared, RolloutStep::kCommit, same);
  add("after a restart, one not heard of", prepared, RolloutStep::kNothing, [](auto& f) {
    f.members[0] = {false, false, false};
  });
  add("after a restart, view changed", prepared, RolloutStep::kAbort, [](auto& f) { f.view_changed = true; });

  const v1::PlanState committing = v1::PLAN_STATE_COMMITTING;
  add("in force everywhere", committing, RolloutStep::kWaveDone, same);
  add("not yet", committing, RolloutStep::kNothing, [](auto& f) { f.members[0].in_force = false; });
  add("no way back", committing, RolloutStep::kNothing, [](auto& f) {
    f.members[0].in_force = false, f.deadline = kNow, f.failure = "x", f.view_changed = true, f.group_complete = false,
    f.stop = true;
  });
  add("nobody is left", committing, RolloutStep::kWaveDone, [](auto& f) { f.members.clear(); });

  for (const v1::PlanState state : {v1::PLAN_STATE_PROPOSED, v1::PLAN_STATE_DONE, v1::PLAN_STATE_ABORTED}) {
    add(StateName(state), state, RolloutStep::kNothing, same);
  }
  for (const Case& c : cases) {
    const RolloutDecision decision = DecideRollout(c.facts, kNow);
    EXPECT_EQ(decision.step, c.step) << c.name;
    EXPECT_EQ(decision.failed, c.failed) << c.name;
    EXPECT_EQ(decision.reason.empty(), c.step != RolloutStep::kAbort) << c.name;
  }
}

TEST(PlanStates, ActiveFinishedAndNames) {
  EXPECT_EQ(StateName(v1::PLAN_STATE_PREPARING), "PREPARING");
  for (const v1::PlanState state :
       {v1::PLAN_STATE_APPROVED, v1::PLAN_STATE_PREPARING, v1::PLAN_STATE_PREPARED, v1::PLAN_STATE_COMMITTING}) {
    EXPECT_TRUE(IsActive(state) && !IsFinished(state));
  }
  for (const v1::PlanState state : {v1::PLAN_STATE_DONE, v1::PLAN_STATE_REJECTED, v1::PLAN_STATE_EXPIRED,
                                    v1::PLAN_STATE_SUPERSEDED, v1::PLAN_STATE_ABORTED}) {
    EXPECT_TRUE(!IsActive(state) && IsFinished(state));
  }
  EXPECT_FALSE(IsActive(v1::PLAN_STATE_PROPOSED) || IsFinished(v1::PLAN_STATE_PROPOSED));
}

}  // namespace
}  // namespace ballast
