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

// Slots of every layer on every worker, [layers][workers], for replicas[layer] replicas: over all layers at most
// totals[worker], which sum to at least the replicas, and within a layer as near to that proportion as can be (where
// totals are equal, at most one apart), `most` at the most. Workers that get a layer's remainder are those most behind,
// spaced evenly where they are alike. Where unequal totals cannot hold them so, a layer of more than `most` gets fewer.
std::vector<std::vector<int32_t>> SpreadSlots(std::span<const int32_t> replicas, std::span<const int32_t> totals,
                                              int32_t most);

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

// What PlanRequest::replicas_per_worker allows.
struct ReplicaBudget {
  // Beyond one an expert, over all layers and workers.
  int64_t replicas = 0;
  // [workers] slots over all layers: as equal as their room allows, so that what is left for KV caches is, too.
  std::vector<int32_t> slots;
};

// InvalidArgument or FailedPrecondition unless replicas_per_worker is there, at least 0 and fits the workers beside one
// replica an expert.
absl::StatusOr<ReplicaBudget> BudgetOf(const PlanRequest& request);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_BUDGET_H_
