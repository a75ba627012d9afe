// What a plan is predicted to do to the tokens' ways between workers, by task.
#ifndef BALLAST_CONTROLLER_ROLLOUT_TRAFFIC_EFFECT_H_
#define BALLAST_CONTROLLER_ROLLOUT_TRAFFIC_EFFECT_H_

#include <span>
#include <vector>

#include "ballast/v1/plan_service.pb.h"
#include "controller/planner/cost_model.h"
#include "controller/planner/grouping/reasons.h"
#include "controller/planner/grouping/routes.h"
#include "controller/planner/topology.h"
#include "proto/placement/placement.h"
#include "proto/placement/quotas.h"

namespace ballast {

// The traffic fields of `effect`. `before` may be empty: nothing was in force. Pure; any thread.
void SetTraffic(std::span<const DispatchTable> before, std::span<const DispatchTable> after, const Routes& routes,
                const Topology& topology, v1::PlanEffect& effect);

// A layer's time of a token of the mix by the model, summed over layers, in microseconds of one worker: its pairs where
// the busiest worker has 1 + maxvio times the mean, and its copies, less those that starting at home saves.
// `pairs_per_token` is of all layers together, `saved` as HomeSavings has it.
double TokenMicroseconds(const v1::Traffic& traffic, double pairs_per_token, double saved, const CostModel& model);

// Copies that a token of the mix saves by starting at its task's homes instead of anywhere: of tasks that are not
// listed none.
double HomeSavings(std::span<const DispatchTable> layers, const Routes& routes, std::span<const TaskHomes> homes,
                   const Topology& topology);

// `workers`: their names.
v1::ReplicaReason ToProto(const ReplicaReason& reason, std::span<const std::string> workers);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_ROLLOUT_TRAFFIC_EFFECT_H_
