// What a plan is predicted to do, as operators and engines are told it and the store keeps it.
#ifndef BALLAST_CONTROLLER_ROLLOUT_PLAN_EFFECT_H_
#define BALLAST_CONTROLLER_ROLLOUT_PLAN_EFFECT_H_

#include "ballast/v1/plan_service.pb.h"
#include "controller/planner/cost_model.h"
#include "controller/planner/planner.h"

namespace ballast {

// Of each layer's busiest worker, summed over layers: see PlanEffect.
struct BusiestTokens {
  double before = 0;
  double after = 0;
  double bound = 0;
};

// Gain and cost are the plan's, tokens and their time `busiest`'s. Pure; any thread.
v1::PlanEffect MakePlanEffect(const Plan& plan, const BusiestTokens& busiest, const CostModel& model);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_ROLLOUT_PLAN_EFFECT_H_
