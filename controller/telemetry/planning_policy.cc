#include "controller/telemetry/planning_policy.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ballast {

PlanningDecision DecidePlanning(const PlanningFacts& facts, const PlanningLimits& limits, absl::Time now) {
  if (facts.paused) return {false, "the group is paused"};
  if (facts.planning) return {false, "a plan is being made"};
  if (facts.rollout_active) return {false, "a rollout is under way"};
  if (facts.proposal_open) return {false, "a plan waits for approval"};
  if (!facts.group_complete) return {false, "not every worker of the placement serves"};
  if (now < facts.hold_off_until) return {false, "planning is held off"};
  if (now < facts.last_planned + limits.interval) return {false, "planned lately"};
  if (facts.window_tokens < limits.min_tokens) {
    return {false, absl::StrCat("the window holds ", facts.window_tokens, " tokens, less than ", limits.min_tokens)};
  }
  double below = limits.plan_below;
  if (facts.settled_balancedness > 0) below = std::min(below, facts.settled_balancedness - limits.hysteresis);
  if (facts.balancedness >= below) {
    return {false, absl::StrFormat("balancedness %.3f is not below %.3f", facts.balancedness, below)};
  }
  return {true, absl::StrFormat("balancedness %.3f is below %.3f", facts.balancedness, below)};
}

}  // namespace ballast
