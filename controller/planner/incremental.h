// The best that few moves can do: changes to the placement in force, best gain a move first.
//
// Pure and deterministic; any thread. Work is bounded by counts, not by time.
#ifndef BALLAST_CONTROLLER_PLANNER_INCREMENTAL_H_
#define BALLAST_CONTROLLER_PLANNER_INCREMENTAL_H_

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/load.h"
#include "controller/planner/topology.h"
#include "controller/planner/waves.h"
#include "proto/placement/placement.h"

namespace ballast {

// What a plan may move. 0: no limit.
struct MoveBudget {
  int64_t max_moves = 0;
  int64_t max_bytes = 0;
  bool limited() const { return max_moves > 0 || max_bytes > 0; }
};

// How an expert's tokens are split over its replicas where a placement is judged: equally, or by shares solved for the
// load.
enum class Split { kEqual, kSolved };

inline constexpr int64_t kUnlimitedMoves = std::numeric_limits<int64_t>::max();

// The moves of `expert_bytes` each that the budget allows. InvalidArgument names a negative limit, or a limit of bytes
// where the bytes of an expert are unknown.
absl::StatusOr<int64_t> AllowedMoves(const MoveBudget& budget, int64_t expert_bytes);

struct IncrementLimits {
  int64_t max_moves = kUnlimitedMoves;
  // Replicas of one layer on one worker; 0: no limit but the arena. A worker that is above it already stays so.
  int32_t slots_per_layer = 0;
  // Replicas that a worker holds, over all layers; 0: no limit but the arena.
  int32_t slots_per_worker = 0;
  // A change is made where each of its moves takes at least this part off the objective.
  double least_gain = 1e-6;
  // Changes that led to `current` and are part of the same plan: what they brought stays, what they took stays away.
  std::span<const Change> made;
};

// What a search by solved shares knows of every layer with all changes made, so that others need not solve it again: of
// the load, or of the blend of the scenarios.
struct SolvedLayers {
  // [layers] the balancedness.
  std::vector<double> levels;
  // [layers][replicas] each replica's part of the tokens, by (expert, worker).
  std::vector<std::vector<int64_t>> flow;
};

// Changes to `current`, which is valid over topology.workers in order, that make Objective smaller: its busiest workers
// by equal split for each scenario, or by shares solved for the blend of the scenarios (load.h). In the order in which
// they are to be made; after each of them the objective is no larger than before. Never more moves than allowed; none
// where nothing gains. What stays keeps its slot, and no replica moves twice.
//
// A change adds a replica in a free slot, moves one there, puts one in the place of another expert's spare replica, or
// swaps two replicas of different workers; where bursts are known, it also adds one and gives another replica of where
// it comes to in return. Each layer is searched greedily from its busiest workers to the lightest; a few steps further
// than its best gain a move so far, so that pairs of changes are found of which the first alone gains nothing; changes
// that leave the busiest where it is count by how many workers are as busy. Over the layers a heap takes the best gain
// a move first.
//
// `solved`: filled in where the split is kSolved and there is a move to make at all; else left empty.
std::vector<Change> FindIncrement(const Placement& current, const Topology& topology,
                                  std::span<const Scenario> scenarios, Split split, const IncrementLimits& limits,
                                  SolvedLayers* solved = nullptr);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_INCREMENTAL_H_
