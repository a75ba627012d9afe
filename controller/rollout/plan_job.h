// What a group asks its planner, and what it gets back. Plain data: the planner runs elsewhere, on another thread.
#ifndef BALLAST_CONTROLLER_ROLLOUT_PLAN_JOB_H_
#define BALLAST_CONTROLLER_ROLLOUT_PLAN_JOB_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "ballast/v1/common.pb.h"
#include "ballast/v1/plan_service.pb.h"
#include "controller/planner/drift.h"
#include "controller/planner/grouping/group_search.h"
#include "controller/planner/grouping/routes.h"
#include "controller/telemetry/task_mix.h"
#include "proto/placement/placement.h"

namespace ballast {

// Whether plans of the policy are made from what tokens choose together.
inline bool PlansFromRoutes(std::string_view policy) { return policy == "task-aware" || policy == "tacg"; }

struct PlanWorker {
  std::string name;
  std::string node;
  SlotCapacity capacity;
  // See TopologyWorker.
  uint32_t speed = 1;
};

struct PlanScenario {
  std::string name;
  // [layers][experts]
  std::vector<double> tokens;
  // From before the window; planned for, but no part of what the plan's figures say.
  bool remembered = false;
};

struct PlanJob {
  // Given back with the result.
  uint64_t ticket = 0;
  std::string group;
  std::string policy;
  // In force.
  Placement current;
  // Those of its workers that serve: what may hold replicas.
  std::vector<PlanWorker> workers;
  int64_t expert_bytes = 0;
  // At least one, all of the placement's shape.
  std::vector<PlanScenario> scenarios;
  // A rollback: the placement to lead to. Absent: what the policy finds.
  std::optional<Placement> target;
  // Workers are gone for good, or to go: the fewest moves that give every expert a live replica, and a placement
  // without them.
  bool heal = false;
  // Those of them that are still there: what only they hold is copied from them.
  std::vector<std::string> going;
  // For policies that plan from routes: what the window's tokens chose, tasks weighted by the mix. No tasks: nothing is
  // known.
  Routes routes;
  // The window is not half full, or the mix of tasks on its way: a plan is better than none, and not the last.
  bool interim = false;
  // Of policy task-aware.
  GroupLimits group_limits;
  // What a plan of policy cost-aware or task-aware may move; 0: no limit. The others move what they must.
  int64_t max_moves = 0;
  int64_t max_move_bytes = 0;
  int64_t max_bytes_per_second = 0;
};

struct PlannedWave {
  // After the wave, over current.workers; epoch and shares version are not set. Around workers that are gone, or to go,
  // experts that only they have stay with them until a wave brings them back.
  Placement placement;
  // By (destination, slot).
  std::vector<v1::Move> moves;
};

struct PlanOutcome {
  std::vector<PlannedWave> waves;
  std::vector<v1::LayerEffect> layers;
  double balancedness_before = 0;
  double balancedness_after = 0;
  double balancedness_bound = 0;
  double gain_tokens = 0;
  v1::PlanEffect effect;
  // By scenario, what the last wave's placement is predicted to leave; see drift.h. None where the plan's budget cut it
  // short.
  std::vector<SettledScenario> settled;
  // The mix that it was grouped for; empty: it was not, its budget cut it short, or it is interim.
  TaskMix settled_mix;
  // Of the replicas that it brings somewhere, most hops saved first; where it was made from routes.
  std::vector<v1::ReplicaReason> reasons;
  // Whether it pays for its moves, and one sentence with the numbers.
  bool worth = false;
  std::string reason;
  absl::Duration planning_time;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_ROLLOUT_PLAN_JOB_H_
