// When to look at a group's load again, and how its plans have fared: what DecidePlanning is asked with.
#ifndef BALLAST_CONTROLLER_TELEMETRY_PLANNING_PACE_H_
#define BALLAST_CONTROLLER_TELEMETRY_PLANNING_PACE_H_

#include "absl/time/time.h"
#include "controller/telemetry/planning_policy.h"

namespace ballast {

// Plain data and rules; not bound to a thread. `interval`: PlanningLimits::interval.
class PlanningPace {
 public:
  // A look at the load's drift costs a pass over it: so many in the time from one plan to the next.
  static constexpr int kLooksAnInterval = 10;

  // Whether a look is due. One that finds a reason to plan calls Planned.
  bool Due(absl::Time now, absl::Duration interval) const {
    return now >= last_planned_ + interval && now >= next_look_;
  }
  void Looked(absl::Time now, absl::Duration interval) { next_look_ = now + interval / kLooksAnInterval; }
  // A plan is being made.
  void Planned(absl::Time now) { last_planned_ = now; }
  // It was not worth its moves; drift had promised `gain`.
  void Fruitless(double gain) {
    ++fruitless_;
    fruitless_gain_ = gain;
  }
  // It was, or another placement came into force.
  void Fruitful() { fruitless_ = 0; }
  void Tell(PlanningFacts& facts) const {
    facts.last_planned = last_planned_;
    facts.fruitless = fruitless_;
    facts.fruitless_gain = fruitless_gain_;
  }

 private:
  absl::Time last_planned_ = absl::InfinitePast();
  absl::Time next_look_ = absl::InfinitePast();
  // In a row, since the placement came into force.
  int fruitless_ = 0;
  double fruitless_gain_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_TELEMETRY_PLANNING_PACE_H_
