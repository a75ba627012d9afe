// Plans: (load, topology, placement in force, policy) -> placement, its predicted effect and the waves that lead to it.
//
// Pure: no I/O, no clock, no threads, no randomness but fixed seeds; the same request gives the same plan. Any thread.
#ifndef BALLAST_CONTROLLER_PLANNER_PLANNER_H_
#define BALLAST_CONTROLLER_PLANNER_PLANNER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/load.h"
#include "controller/planner/score.h"
#include "controller/planner/topology.h"
#include "controller/planner/waves.h"
#include "proto/placement/placement.h"
#include "proto/placement/quotas.h"

namespace ballast {

struct PlanRequest {
  std::vector<Scenario> scenarios;
  Topology topology;
  // The placement in force, over workers that need not all be in `topology` (one that left) nor the other way round
  // (one that joined). None: everything is new, nothing moves.
  std::optional<Placement> current;
  // Slots of one layer on every worker, the same in every layer. 0: as many as every worker has room for.
  int32_t slots_per_layer = 0;
  // For policies that give layers replicas by need: replicas beyond one an expert on each worker, over all layers.
  // Absent: as many slots in every layer.
  std::optional<int32_t> replicas_per_worker;
  // One expert's weights, for the cost of moves.
  int64_t expert_bytes = 0;
  WaveLimits waves;
};

// A proposed placement with its predicted effect and cost.
struct Plan {
  std::string policy;
  // Over topology.workers; epoch and shares version are 0, the rollout gives them. With `current`: what the last wave
  // leads to.
  Placement placement;
  // With this placement's weights; one for each scenario, in order.
  std::vector<LoadScore> predicted;
  // Of the placement in force, empty without one; the same scenarios.
  std::vector<LoadScore> current;
  // From the placement in force; empty when there is none, or nothing differs.
  std::vector<Wave> waves;
  int64_t moves = 0;
  int64_t bytes = 0;
  // Time of the transfers: in each wave the slowest worker's, summed.
  double transfer_seconds = 0;
  // 1 - (tokens on the busiest worker, summed over layers) / (the same now), for the scenario that gains least. 0
  // without a placement in force.
  double gain = 0;
};

// Decides which workers hold which experts; MakePlan does the rest. Implementations are pure and thread-safe.
class PlannerPolicy {
 public:
  virtual ~PlannerPolicy() = default;
  // As users write it: "eplb".
  virtual std::string_view name() const = 0;
  // One table a layer, `rank` being an index into topology.workers, experts on distinct workers sorted by index,
  // weights as the policy wants them or all 0: MakePlan then solves them. Called with a valid request.
  // FailedPrecondition where there are fewer slots than experts.
  virtual absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const = 0;
};

// InvalidArgument or FailedPrecondition names what is wrong with the request.
absl::StatusOr<Plan> MakePlan(const PlannerPolicy& policy, const PlanRequest& request);

// Weights that make `scenarios` level on a placement that stands: the same replicas with shares solved for the blend of
// the scenarios, layer by layer.
Placement WithSolvedShares(Placement placement, const Topology& topology, std::span<const Scenario> scenarios);

// The slots of one layer that the request allows on each worker, the same for all: slots_per_layer, or what the
// smallest worker has room for. FailedPrecondition when it is 0, more than fits, or too few for every expert.
absl::StatusOr<int32_t> SlotsPerLayer(const PlanRequest& request);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_PLANNER_H_
