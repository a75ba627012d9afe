// Workers that are to go, because their process stops or an operator said so: pure rules.
//
// Their replicas are brought to the other workers by a plan like those around workers that are gone, but with the
// worker still there: it serves until the last wave is in force, and the others copy from it. Such a plan needs no
// approval and no pause holds it up: the decision that the worker goes has been made, by whoever stops it; what is left
// to decide is whether its experts go with it.
#ifndef BALLAST_CONTROLLER_GROUP_DRAIN_H_
#define BALLAST_CONTROLLER_GROUP_DRAIN_H_

#include "absl/time/time.h"
#include "ballast/v1/common.pb.h"

namespace ballast {

struct DrainFacts {
  bool alive = false;
  // Its process stops; an operator drained it.
  bool leaving = false;
  bool cordoned = false;
  // It is in the view in force.
  bool member = false;
  // It has replicas in the placement in force.
  bool holds = false;
  // The last try found that the others have no room for what it holds.
  bool no_room = false;
};

v1::DrainState DrainStateOf(const DrainFacts& worker);

struct DrainPlanFacts {
  // Some worker's state is MOVING.
  bool moving = false;
  // Workers that may take its replicas.
  int others = 0;
  // A plan is being made; a rollout is under way. One that needs the worker aborts by itself (rollout.h).
  bool planning = false;
  bool rollout_active = false;
  // Every member has installed the view.
  bool view_works = false;
  // Of the last plan for it.
  absl::Time last_planned = absl::InfinitePast();
  // Rollouts of such plans in a row that the workers could not do, with nothing moved.
  int failures = 0;
};

enum class DrainStep {
  kNothing,
  kPlan,
  // There is nobody to take the replicas, or it has failed kMostDrainFailures times.
  kGiveUp,
};

inline constexpr int kMostDrainFailures = 6;

// A plan that did not come about is followed by the next after `retry`, twice as late after each failure.
DrainStep DecideDrain(const DrainPlanFacts& facts, absl::Duration retry, absl::Time now);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_GROUP_DRAIN_H_
