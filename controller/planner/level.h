// Ballast's own policy.
#ifndef BALLAST_CONTROLLER_PLANNER_LEVEL_H_
#define BALLAST_CONTROLLER_PLANNER_LEVEL_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/alias.h"
#include "controller/planner/planner.h"

namespace ballast {

// Every worker is used for what it has room for, and by its speed. Packs go to the workers that hold most of them
// already, and, of equal ones, to the nodes where fewest tokens have to cross nodes (nodes.h).
//
// One load: PlaceLevel (alias.h), with shares solved for the load. For an engine that splits equally: the packs that
// are best with equal split, by search (search.h) from EPLB's placement or the greedy one.
//
// Several loads: the packs that are best under the worst of them with equal split, by search. Placements tuned to
// shares serve unseen loads worse; shares that are solved step by step come on top, and packs are polished for them as
// far as equal split hardly suffers (polish.h), unless the engine splits equally.
//
// A budget of replicas: counts by knapsack over what search reaches with each for equal split (budget.h), so that
// layers get replicas by need; shares are solved on top where there is one load.
class CostAwarePolicy final : public PlannerPolicy {
 public:
  // What the engine does with an expert's tokens: follows shares, or splits them equally over the replicas.
  using Split = ballast::Split;
  // `proposals`: how long a layer is searched where it is, see SearchOptions.
  explicit CostAwarePolicy(int32_t proposals = 0, Split split = Split::kSolved)
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
