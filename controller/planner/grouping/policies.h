// Planner policies that group experts by what tokens choose together.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_POLICIES_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_POLICIES_H_

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/grouping/group_search.h"
#include "controller/planner/grouping/routes.h"
#include "controller/planner/grouping/tacg.h"
#include "controller/planner/planner.h"

namespace ballast {

// TACG with GESR as published (tacg.h), but within slots: every worker holds as many experts as the others, or one
// more; the other slots are for GESR's replicas, two each for the most generic experts. Equal split, for the paper has
// no shares. The placement in force is not looked at, except that whole packs go where most of them is. Thread-safe.
class TacgPolicy final : public PlannerPolicy {
 public:
  // `routes`, which must outlive the policy, are valid and of the requests' layers and experts.
  explicit TacgPolicy(const Routes& routes, const TacgOptions& options = {}) : routes_(routes), options_(options) {}
  std::string_view name() const override { return "tacg"; }
  // InvalidArgument with replicas_per_worker, too. FailedPrecondition also where the slots left over are replicas for
  // more experts than there are; InvalidArgument where the routes have other layers or experts.
  absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const override;
  Split split(const PlanRequest&) const override { return Split::kEqual; }

 private:
  const Routes& routes_;
  const TacgOptions options_;
};

struct TaskAwareOptions {
  GroupLimits limits;
  // As GroupProblem's.
  int64_t proposals = 0;
  double move_price = .002;
  // With a placement in force: what a plan may move, over all layers. Layers that gain most a move come first, by few
  // moves or, where that brings more, placed anew; of few moves one that does not fit any more gets what is left, and
  // those after it stay. Experts that would be without a worker, or have
  // one without a slot for them, are moved whatever the budget says.
  MoveBudget budget;
  // The placement in force is not where the search starts, as if there were none: it was never grouped, and only a plan
  // from nothing brings consecutive layers' experts together.
  bool anew = false;
};

// Ours (group_search.h): every layer's homes, replicas and balance searched together, with the shares that go with
// them. A placement in force is where the search starts: experts that have lost their worker go where there is room,
// and of a worker with more than its slots spare replicas go first (FitPacks). Each layer is searched from nothing too,
// and is placed anew where that is better by more than its moves count. With replicas_per_worker layers get
// replicas by what these save there, one on every worker at a time. Without one, workers that are alike change names
// layer by layer, so that what consecutive layers' tokens use is near, and the first layer's near their task's workers
// (AlignLayers). Thread-safe.
class TaskAwarePolicy final : public PlannerPolicy {
 public:
  // As TacgPolicy.
  explicit TaskAwarePolicy(const Routes& routes, const TaskAwareOptions& options = {})
      : routes_(routes), options_(options) {}
  std::string_view name() const override { return "task-aware"; }
  absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const override;

 private:
  const Routes& routes_;
  const TaskAwareOptions options_;
};

// The placement in force of one layer as packs that fit: no worker holds more than `slots` [workers], together at least
// as many as experts, and every expert has one. Spare replicas give way, those of the least `load` [experts] first,
// then experts, to the workers with most room.
Packs FitPacks(const DispatchTable& layer, std::span<const int32_t> slots, std::span<const double> load);

// [workers] what sending a token's vector there costs, 1 on average, where tokens are at home on all workers alike: the
// time that its links take. Empty where all cost the same.
std::vector<double> CopyPrices(const Topology& topology);

// Renames workers of equal `kind` [workers] in every layer: in the first such that a task's pairs go to its workers,
// consecutive ones, as many for each task; in every other such that a token's pairs go where its pairs of the layer
// before went, as far as can be. Token t of a task is the same in every layer. Hops and balance of a layer stay.
void AlignLayers(const Routes& routes, std::span<const int32_t> kind, std::vector<DispatchTable>& layers);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_POLICIES_H_
