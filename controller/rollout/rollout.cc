#include "controller/rollout/rollout.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ballast {

RolloutDecision DecideRollout(const RolloutFacts& facts, absl::Time now) {
  const auto all = [&](bool MemberProgress::*field) {
    return std::all_of(facts.members.begin(), facts.members.end(),
                       [field](const MemberProgress& member) { return member.*field; });
  };
  switch (facts.state) {
    case v1::PLAN_STATE_APPROVED:
      if (facts.waves_known && facts.waves_done == facts.waves_total) return {RolloutStep::kFinish, ""};
      if (facts.stop) return {RolloutStep::kAbort, "stopped by a rollback"};
      if (!facts.group_complete) return {RolloutStep::kAbort, "a worker of the placement is gone or to go"};
      if (facts.paused && !facts.ordered) return {};
      if (!facts.waves_known) {
        return facts.working_out ? RolloutDecision{} : RolloutDecision{RolloutStep::kWorkOut, ""};
      }
      if (!facts.view_installed) return {};
      return {RolloutStep::kBeginWave, ""};
    case v1::PLAN_STATE_PREPARING:
    case v1::PLAN_STATE_PREPARED:
      if (!facts.failure.empty()) return {RolloutStep::kAbort, facts.failure, true};
      if (facts.view_changed) return {RolloutStep::kAbort, "the group's view changed"};
      if (!facts.group_complete) return {RolloutStep::kAbort, "a worker of the wave is to go"};
      // After a restart PREPARED waits for the members' word again: one may have lost what it had prepared.
      if (all(&MemberProgress::prepared) && all(&MemberProgress::connected)) {
        return {facts.state == v1::PLAN_STATE_PREPARING ? RolloutStep::kRecordPrepared : RolloutStep::kCommit, ""};
      }
      if (now >= facts.deadline) {
        return {RolloutStep::kAbort, "its deadline passed before every worker had prepared it", true};
      }
      return {};
    case v1::PLAN_STATE_COMMITTING:
      return all(&MemberProgress::in_force) ? RolloutDecision{RolloutStep::kWaveDone, ""} : RolloutDecision{};
    default:
      return {};
  }
}

bool IsFinished(v1::PlanState state) {
  switch (state) {
    case v1::PLAN_STATE_DONE:
    case v1::PLAN_STATE_REJECTED:
    case v1::PLAN_STATE_EXPIRED:
    case v1::PLAN_STATE_SUPERSEDED:
    case v1::PLAN_STATE_ABORTED:
      return true;
    default:
      return false;
  }
}

bool IsActive(v1::PlanState state) { return state != v1::PLAN_STATE_PROPOSED && !IsFinished(state); }

std::string StateName(v1::PlanState state) {
  constexpr std::string_view kPrefix = "PLAN_STATE_";
  const std::string name = v1::PlanState_Name(state);
  return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : absl::StrCat("state ", static_cast<int>(state));
}

}  // namespace ballast
