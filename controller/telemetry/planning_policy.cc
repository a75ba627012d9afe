#include "controller/telemetry/planning_policy.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ballast {
namespace {

constexpr int kMostFruitless = 5;

}  // namespace

PlanningDecision DecidePlanning(const PlanningFacts& facts, const PlanningLimits& limits, absl::Time now) {
  const auto nothing = [](std::string reason) {
    return PlanningDecision{PlanningDecision::Kind::kNothing, std::move(reason)};
  };
  if (facts.paused) return nothing("the group is paused");
  if (facts.planning) return nothing("a plan is being made");
  if (facts.rollout_active) return nothing("a rollout is under way");
  if (facts.proposal_open) return nothing("a plan waits for approval");
  if (!facts.group_complete) {
    const absl::Time heal = std::max(facts.incomplete_since, facts.last_healed) + limits.heal_after;
    if (now < heal) return nothing("not every worker that holds replicas serves");
    if (!facts.view_works) return nothing("the view is not installed everywhere");
    return {PlanningDecision::Kind::kHeal, absl::StrCat("a worker that holds replicas is gone for ",
                                                        absl::FormatDuration(now - facts.incomplete_since))};
  }
  if (!facts.view_works) return nothing("the view is not installed everywhere");
  if (now < facts.hold_off_until) return nothing("planning is held off");
  if (now < facts.last_planned + limits.interval) return nothing("planned lately");
  if (facts.window_tokens < limits.min_tokens) {
    return nothing(absl::StrCat("the window holds ", facts.window_tokens, " tokens, less than ", limits.min_tokens));
  }
  double balancedness = 1;
  for (const ScenarioDrift& scenario : facts.drift.scenarios) {
    balancedness = std::min(balancedness, 1 / (1 + scenario.excess));
  }
  const double gain = std::max(facts.drift.gain, facts.mix.drifted ? facts.mix.beyond : 0);
  if (!facts.mix.drifted && balancedness >= limits.plan_below) {
    return nothing(absl::StrFormat("balancedness %.3f is not below %.3f", balancedness, limits.plan_below));
  }
  if (!facts.mix.drifted && !facts.drift.drifted) return nothing(facts.drift.reason);
  if (facts.fruitless > 0 && gain < facts.fruitless_gain + limits.hysteresis &&
      now < facts.last_planned + limits.interval * (1 << std::min(facts.fruitless, kMostFruitless))) {
    return nothing(absl::StrCat("the last ", facts.fruitless, " plans were not worth their moves"));
  }
  if (facts.mix.drifted) return {PlanningDecision::Kind::kPlan, facts.mix.reason};
  return {PlanningDecision::Kind::kPlan,
          absl::StrFormat("balancedness %.3f is below %.3f; %s", balancedness, limits.plan_below, facts.drift.reason)};
}

}  // namespace ballast
