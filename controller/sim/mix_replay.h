// Replays a changing mix of tasks through telemetry and the task-aware planner as a controller has them, and judges the
// placement in force on tokens that nobody planned for.
//
// Pure and deterministic: the same input gives the same figures.
#ifndef BALLAST_CONTROLLER_SIM_MIX_REPLAY_H_
#define BALLAST_CONTROLLER_SIM_MIX_REPLAY_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/grouping/policies.h"
#include "controller/planner/grouping/routes.h"
#include "controller/planner/topology.h"
#include "controller/telemetry/load_window.h"
#include "controller/telemetry/task_mix.h"

namespace ballast {

struct MixReplayOptions {
  Topology topology;
  int32_t slots_per_layer = 0;
  int64_t expert_bytes = 1;
  // Of each bucket, all tasks together; a request's tokens are of one task.
  int64_t tokens_per_bucket = 40'000;
  int64_t tokens_per_request = 200;
  // Workers' --route-samples times their reports in a bucket, for each task.
  int32_t routes_per_bucket = 160;
  LoadWindow::Options load;
  MixLimits limits;
  TaskAwareOptions planner;
  int64_t max_route_tokens = 16'384;
  // Buckets from one plan to the next at least; the waves of a plan have ended by then.
  int32_t buckets_between_plans = 3;
  uint32_t seed = 1;
};

// How a placement serves a mix: see HopScore.
struct MixScore {
  double hops = 0;
  double maxvio = 0;
  // The most of the tasks' alone, by the placement's shares; and with shares solved for the task.
  double task_maxvio = 0;
  double task_maxvio_solved = 0;
};

struct MixStep {
  // At the end of the bucket.
  MixScore score;
  bool planned = false;
  int64_t moves = 0;
  int64_t bytes = 0;
};

// One entry of `schedule` a bucket: the mix that requests are drawn from. Tokens are drawn from `served` (with
// repetition), scores are of `held_out`, the same tasks and shapes, weighted by the bucket's mix. Nothing is placed at
// first: the first plan, when the mix is known, is from nothing. Errors are the planner's.
absl::StatusOr<std::vector<MixStep>> ReplayMix(const Routes& served, const Routes& held_out,
                                               std::span<const TaskMix> schedule, const MixReplayOptions& options);

// What a plan from nothing for just this mix, from all served tokens, does.
absl::StatusOr<MixScore> OwnPlan(const Routes& served, const Routes& held_out, const TaskMix& mix,
                                 const MixReplayOptions& options);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SIM_MIX_REPLAY_H_
