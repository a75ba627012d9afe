// When to plan: a pure rule. What a plan looks like and whether it pays is the planner's business.
#ifndef BALLAST_CONTROLLER_TELEMETRY_PLANNING_POLICY_H_
#define BALLAST_CONTROLLER_TELEMETRY_PLANNING_POLICY_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "controller/planner/drift.h"
#include "controller/telemetry/task_mix.h"

namespace ballast {

struct PlanningFacts {
  // Every worker that holds replicas is in the view, none is to go.
  bool group_complete = false;
  // Since when it is not; infinite future: it is.
  absl::Time incomplete_since = absl::InfiniteFuture();
  // The view has members and every one of them has installed it.
  bool view_works = false;
  bool paused = false;
  // A rollout is under way, a plan waits for approval, a plan is being made.
  bool rollout_active = false;
  bool proposal_open = false;
  bool planning = false;
  absl::Time last_planned = absl::InfinitePast();
  // Plans in a row that were not worth their moves, for the placement in force; and what drift promised the last of
  // them (DriftReport::gain).
  int fruitless = 0;
  double fruitless_gain = 0;
  // The last try to do without workers that are gone.
  absl::Time last_healed = absl::InfinitePast();
  absl::Time hold_off_until = absl::InfinitePast();
  int64_t window_tokens = 0;
  // Of the loads to plan for, under the placement in force; looked at only where nothing else speaks against a plan.
  DriftReport drift;
  // Of policies that plan from routes: has the mix of tasks moved away from the one that was grouped for?
  MixDrift mix;
};

struct PlanningLimits {
  absl::Duration interval;
  int64_t min_tokens = 0;
  double plan_below = 1;
  // So much more must be left to gain than when a plan was not worth it for another one before its time.
  double hysteresis = 0.01;
  absl::Duration heal_after = absl::InfiniteDuration();
};

struct PlanningDecision {
  enum class Kind {
    kNothing,
    // For the load.
    kPlan,
    // Around workers that are gone.
    kHeal,
  };
  Kind kind = Kind::kNothing;
  // Why (not), for people.
  std::string reason;
};

// The mix of tasks calls for a plan however level its load is. After plans that were not worth their moves the next one
// is made twice as late each time, up to 32 times limits.interval, unless the load has moved on. A plan that its budget
// cut short is followed by one from where it stopped, so that a row of such plans ends when nothing more is worth it.
//
// A group that is not whole is not planned for its load, but after limits.heal_after planned without the workers that
// are gone; again after as long where that did not come about. Hold-offs are about load and do not delay it.
PlanningDecision DecidePlanning(const PlanningFacts& facts, const PlanningLimits& limits, absl::Time now);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_TELEMETRY_PLANNING_POLICY_H_
