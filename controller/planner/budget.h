// Replicas under a memory budget: which layers get how many, and on which workers their slots are.
#ifndef BALLAST_CONTROLLER_PLANNER_BUDGET_H_
#define BALLAST_CONTROLLER_PLANNER_BUDGET_H_

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/planner.h"

namespace ballast {

// Multiple-choice knapsack: one of `sizes` (ascending, the first 0) for each layer, together at most `budget`, such
// that the sum of cost[layer][choice] is least; among equals the smaller sizes of later layers. What is left over goes
// to the layers of greatest cost, up to the last size each, so that the budget is used up where it can be. Exact but
// for the left-over; O(layers * budget * sizes).
std::vector<int32_t> AllocateReplicas(std::span<const std::vector<double>> cost, std::span<const int32_t> sizes,
                                      int64_t budget);

// Slots of every layer on every worker, [layers][workers], for replicas[layer] replicas: as equal as can be within a
// layer (at most one apart), and over all layers (equal on all workers where the sum divides by them). Workers that get
// a layer's remainder are those with fewest slots so far, spaced evenly where they are alike.
std::vector<std::vector<int32_t>> SpreadSlots(std::span<const int32_t> replicas, int32_t workers);

// CRAFT as its paper states it (2026): per-layer replica counts of 0, 1, 2, 4, ..., workers by the knapsack over the
// balancedness that greedy replication and longest-first packing reach with equal split, and that packing. Needs
// PlanRequest::replicas_per_worker.
class CraftPolicy final : public PlannerPolicy {
 public:
  std::string_view name() const override { return "craft"; }
  absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const override;
  Split split(const PlanRequest& /*request*/) const override { return Split::kEqual; }
};

// The counts of a layer that are tried, 0 first: 0, 1, 2, 3, 4, 6, 8, 12, 16, ... up to `most`.
std::vector<int32_t> ReplicaSizes(int32_t most);

// InvalidArgument or FailedPrecondition unless replicas_per_worker is there, at least 0 and fits every worker beside
// one replica an expert. Returns the replicas beyond those, over all layers and workers.
absl::StatusOr<int64_t> ReplicaBudget(const PlanRequest& request);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_BUDGET_H_
