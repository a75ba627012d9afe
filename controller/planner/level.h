// Placements that traffic shares can make level, by construction instead of by search.
#ifndef BALLAST_CONTROLLER_PLANNER_LEVEL_H_
#define BALLAST_CONTROLLER_PLANNER_LEVEL_H_

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/packs.h"
#include "controller/planner/planner.h"

namespace ballast {

// Places one layer's experts on `workers` equal workers of `slots` slots each, distinct within a worker, every slot
// filled while an expert is left that the worker lacks. slots * workers >= experts, slots <= experts.
//
// Where experts <= workers * (slots - 1) the placement can be exactly level, whatever the load, with fewer than
// `workers` extra replicas (generalised alias method): of the experts in order of load, the first window of slots - 1
// neighbours that together with the next expert reaches the mean goes to one worker, which a piece of that next expert
// fills up to the mean; what is left is the same problem with a worker less. The first window cannot be above the mean
// and the last window and its next not below, so there is always one. O(E log E + D E).
//
// With fewer slots the same is done with levels above the mean, from the lower bound up: the heaviest expert joins the
// heaviest window that leaves room for all of it, or, where none does, gives a piece to the lightest window. EPLB's
// placement is taken where none of the levels works out better.
//
// What slots are left over take further replicas of the experts with most tokens a replica, which shares for other
// loads can use.
Packs PlaceLevel(std::span<const double> tokens, int32_t workers, int32_t slots);

// Ballast's own policy. Packs go to the workers that hold most of them already.
//
// One load, as many slots in every layer: PlaceLevel, with shares solved for the load. For an engine that splits
// equally: the packs that are best with equal split, by search.
//
// Several loads: the packs that are best under the worst of them with equal split, by search (search.h). Placements
// tuned to shares serve unseen loads worse; shares that are solved step by step come on top.
//
// A budget of replicas: counts by knapsack over what search reaches with each (budget.h), so that layers get replicas
// by need; shares are solved where there is one load.
class CostAwarePolicy final : public PlannerPolicy {
 public:
  // What the engine does with an expert's tokens: follows shares, or splits them equally over the replicas.
  using Split = ballast::Split;
  // `proposals`: how long a layer is searched where it is, see SearchOptions.
  explicit CostAwarePolicy(int32_t proposals = 200'000, Split split = Split::kSolved)
      : proposals_(proposals), split_(split) {}
  std::string_view name() const override { return "cost-aware"; }
  absl::StatusOr<std::vector<DispatchTable>> Place(const PlanRequest& request) const override;
  Split split(const PlanRequest& request) const override {
    return request.scenarios.size() > 1 ? Split::kEqual : split_;
  }

 private:
  const int32_t proposals_;
  const Split split_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_LEVEL_H_
