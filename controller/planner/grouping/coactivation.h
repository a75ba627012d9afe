// A layer placed by what tokens choose together and by nothing else: where search starts, and what it is compared with.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_COACTIVATION_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_COACTIVATION_H_

#include <cstdint>
#include <span>

#include "controller/planner/grouping/routes.h"
#include "controller/planner/packs.h"

namespace ballast {

// Packs for as many workers, by pooled co-activation alone: spectral clusters with exact sizes, improved by swaps;
// slots that are left take further replicas of the experts with most pairs a replica. `slots` [workers], together at
// least as many as experts.
Packs PlaceCoactivation(const LayerRoutes& layer, std::span<const int32_t> slots, bool swaps);

// Free slots take a replica each, `most` at most: of the expert with most pairs a replica that the worker lacks. `load`
// [experts] pairs, or their parts.
void FillSlots(std::span<const double> load, std::span<const int32_t> slots, int64_t most, Packs& packs);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_COACTIVATION_H_
