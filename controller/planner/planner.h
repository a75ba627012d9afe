// Plans: (load, topology, placement in force, policy) -> placement, its predicted effect and the waves that lead to it.
//
// Pure: no I/O, no clock, no threads, no randomness but fixed seeds; the same request gives the same plan. Any thread.
#ifndef BALLAST_CONTROLLER_PLANNER_PLANNER_H_
#define BALLAST_CONTROLLER_PLANNER_PLANNER_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/cost_model.h"
#include "controller/planner/gate.h"
#include "controller/planner/incremental.h"
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
  // Slots of one layer on every worker, the same in every layer. 0: as many as each worker has room for, or, for
  // policies that need as many on all of them, as the smallest has.
  int32_t slots_per_layer = 0;
  // For policies that give layers replicas by need: replicas beyond one an expert on each worker, over all layers.
  // Absent: as many slots in every layer.
  std::optional<int32_t> replicas_per_worker;
  // One expert's weights, for the cost of moves.
  int64_t expert_bytes = 0;
  // With `current` and a limit: the best plan from it within the budget, what stays in its slot (incremental.h), in
  // place of the policy's own.
  MoveBudget move_budget;
  WaveLimits waves;
  // What busy workers cost, and what a plan has to bring in.
  CostModel cost_model;
  GateLimits gate;
};

// A proposed placement with its predicted effect and cost.
struct Plan {
  std::string policy;
  // Over topology.workers; epoch and shares version are 0, the rollout gives them. With `current`: what the last wave
  // leads to.
  Placement placement;
  // With this placement's weights; one for each scenario, in order.
  std::vector<LoadScore> predicted;
  // Of the placement in force, empty without one; the same scenarios. What is said of solved shares is not solved (see
  // LayerScorer::ScoreUnsolved).
  std::vector<LoadScore> current;
  // From the placement in force; empty when there is none, or nothing differs.
  std::vector<Wave> waves;
  int64_t moves = 0;
  int64_t bytes = 0;
  // The same by link, and the time that they take.
  TransferCost transfer;
  // How far from level it is, and the placement in force: see Objective, with the placements' weights. LoadScore's
  // upper_bound and busiest_bound say what no placement of as many replicas can go beyond.
  double objective = 1;
  double objective_now = 1;
  // 1 - objective / objective_now: with one scenario the part of the busiest workers' tokens, summed over layers, that
  // goes away. This and all below: 0 without a placement in force.
  double gain = 0;
  // Tokens that go away on the busiest workers, summed over layers and scenarios, of the loads as they are given; and
  // their time by the cost model.
  double gain_tokens = 0;
  double gain_microseconds = 0;
  // Whether it pays for its moves within the gate's horizon, and why.
  GateDecision gate;
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
  // How its placements split an expert's tokens: what incremental plans are searched for.
  virtual Split split(const PlanRequest& /*request*/) const { return Split::kSolved; }
};

// InvalidArgument or FailedPrecondition names what is wrong with the request.
//
// Where scenarios have bursts (Scenario::burstiness) and the policy splits equally, a plan is judged by the busiest
// workers of single steps (objective, gain, gate), and increments are searched for that; places anew are searched for
// the mean of steps all the same.
//
// With a limited move budget the plan makes the placement in force no worse (it is empty where nothing gains). Changes
// of few moves each (incremental.h) end where no next one gains; where the moves that are left could gain gate.min_gain
// more, layers may be as the policy places them anew, those first that gain most a move. FailedPrecondition says so
// where an expert has no live replica (PlanFailure is for that) or a worker holds more than its arena allows.
absl::StatusOr<Plan> MakePlan(const PlannerPolicy& policy, const PlanRequest& request);

// The plan that leads to `target`, a valid placement of the load's shape (what of it is on workers that the topology
// has not is left out); the move budget does not count. Weights stay as they are. The errors of MakePlan.
absl::StatusOr<Plan> PlanTo(std::string_view name, PlanRequest request, const Placement& target);

// The plan that makes `changes`, in their order, to `current`, which is request.current over its topology. Experts may
// be without a replica before and after. Weights are solved for the blend of the scenarios, or 1. `known`: of what the
// changes lead to; or empty.
absl::StatusOr<Plan> PlanChanges(std::string_view name, const PlanRequest& request, const Placement& current,
                                 std::span<const Change> changes, Split split, const SolvedLayers& known = {});

// What the request allows a search for changes: moves that pay for themselves by the rule of the gate. Each has to
// save, within the gate's horizon, `payback` times what an expert's way over the slowest link between workers costs, as
// if moves came one after the other.
IncrementLimits LimitsOf(const PlanRequest& request, int64_t max_moves);

// The request without bursts, where it has any and `split` is solved: shares that are solved for one load are judged by
// it alone.
std::optional<PlanRequest> ByMeans(const PlanRequest& request, Split split);

// The errors of MakePlan for the request alone.
absl::Status Validate(const PlanRequest& request);

// What the gate decides on.
GateInput MakeGateInput(const PlanRequest& request, const Plan& plan);

// Weights that make `scenarios` level on a placement that stands: the same replicas with shares solved for the blend of
// the scenarios, layer by layer.
Placement WithSolvedShares(Placement placement, const Topology& topology, std::span<const Scenario> scenarios);

// [workers] the slots of one layer that the request allows on each worker, at most one an expert: slots_per_layer, or
// what the worker has room for, which may be none. FailedPrecondition when slots_per_layer is more than fits a worker,
// or all together are too few for every expert.
absl::StatusOr<std::vector<int32_t>> SlotsOfWorkers(const PlanRequest& request);

// The slots of one layer that the request allows on each worker, the same for all: slots_per_layer, or what the
// smallest worker has room for. FailedPrecondition when it is 0, more than fits, or too few for every expert.
absl::StatusOr<int32_t> SlotsPerLayer(const PlanRequest& request);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_PLANNER_H_
