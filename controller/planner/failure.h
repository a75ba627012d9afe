// What to do when workers are gone: the fewest moves after which every expert has a live replica again.
//
// Pure and deterministic; any thread. Work is bounded by counts, not by time.
#ifndef BALLAST_CONTROLLER_PLANNER_FAILURE_H_
#define BALLAST_CONTROLLER_PLANNER_FAILURE_H_

#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/planner.h"

namespace ballast {

struct FailurePlan {
  // Over the live workers. Its first waves give each lost expert a replica, from the checkpoint; with a move budget,
  // what that leaves of it goes into balance afterwards.
  Plan plan;
  // Experts that no live worker holds, in order: what the group cannot serve until its plan is rolled out.
  std::vector<ExpertId> lost;
  // Those of them that stay without: there is neither a free slot nor a spare replica left. In order.
  std::vector<ExpertId> without_replica;
};

// `request.topology`: the live workers. `request.current`: the placement in force, which may name dead ones.
// `request.move_budget`: for all moves; those that give lost experts a replica are made even beyond it. Without a limit
// only they are made.
//
// Every lost expert takes one move, the fewest there can be: into a free slot, or into the slot of a spare replica of
// an expert that has another; whichever leaves the busiest workers least busy, the most loaded experts first. When room
// runs out the least loaded experts go without. The same errors as MakePlan, and InvalidArgument without `current`.
absl::StatusOr<FailurePlan> PlanFailure(const PlanRequest& request, Split split = Split::kSolved);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_FAILURE_H_
