// When to plan: a pure rule. What a plan looks like and whether it pays is the planner's business.
#ifndef BALLAST_CONTROLLER_TELEMETRY_PLANNING_POLICY_H_
#define BALLAST_CONTROLLER_TELEMETRY_PLANNING_POLICY_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace ballast {

struct PlanningFacts {
  // Every worker of the placement is in the view, none is leaving.
  bool group_complete = false;
  bool paused = false;
  // A rollout is under way, a plan waits for approval, a plan is being made.
  bool rollout_active = false;
  bool proposal_open = false;
  bool planning = false;
  absl::Time last_planned = absl::InfinitePast();
  absl::Time hold_off_until = absl::InfinitePast();
  int64_t window_tokens = 0;
  // Of the window, under the placement in force.
  double balancedness = 0;
  // What the last rollout was predicted to reach; 0: none.
  double settled_balancedness = 0;
};

struct PlanningLimits {
  absl::Duration interval;
  int64_t min_tokens = 0;
  double plan_below = 1;
  double hysteresis = 0;
};

struct PlanningDecision {
  bool plan = false;
  // Why (not), for people.
  std::string reason;
};

PlanningDecision DecidePlanning(const PlanningFacts& facts, const PlanningLimits& limits, absl::Time now);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_TELEMETRY_PLANNING_POLICY_H_
