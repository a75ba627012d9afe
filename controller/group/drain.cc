#include "controller/group/drain.h"

namespace ballast {

v1::DrainState DrainStateOf(const DrainFacts& worker) {
  const bool stops = worker.leaving && worker.alive;
  if (!stops && !worker.cordoned) return v1::DRAIN_STATE_UNSPECIFIED;
  if (stops && !worker.member) return v1::DRAIN_STATE_OUT;
  if (!worker.holds) return v1::DRAIN_STATE_EMPTY;
  return worker.no_room ? v1::DRAIN_STATE_STUCK : v1::DRAIN_STATE_MOVING;
}

DrainStep DecideDrain(const DrainPlanFacts& facts, absl::Duration retry, absl::Time now) {
  if (!facts.moving || facts.planning || facts.rollout_active) return DrainStep::kNothing;
  if (facts.others == 0 || facts.failures >= kMostDrainFailures) return DrainStep::kGiveUp;
  if (!facts.view_works || now < facts.last_planned + retry * (1 << facts.failures)) return DrainStep::kNothing;
  return DrainStep::kPlan;
}

}  // namespace ballast
