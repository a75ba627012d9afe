// Why a replica is where it is: who its tokens' other experts are, whose tokens they are, and what it saves.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_REASONS_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_REASONS_H_

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "controller/planner/grouping/routes.h"
#include "proto/placement/placement.h"
#include "proto/placement/quotas.h"

namespace ballast {

struct ReplicaReason {
  ExpertId expert;
  int32_t worker = 0;
  // It is new there.
  bool moved = false;
  // Experts of the layer on this worker that the expert's tokens choose too, with the part of its tokens (the mix's
  // proportions) that do; most first, then by number; at most kMostPartners.
  std::vector<std::pair<int32_t, double>> partners;
  // Tasks by their parts of the expert's tokens, likewise.
  std::vector<std::pair<std::string, double>> tasks;
  // Hops a token of the mix that it saves. A moved replica: against the expert's workers before, all else as it is now.
  // One of several: against doing without it. An only one: against the mean over the other workers.
  double hops_saved = 0;
};

inline constexpr size_t kMostPartners = 4;

// Of every replica of `expert` in `after`, by worker. `before`: what was in force, or empty where nothing was. Hops are
// counted with free choice among replicas: a token's experts with one replica decide which workers it visits, the
// others then go where it is, else to their replicas by turns. The expert is in range, and the routes are of the
// tables' layers and experts.
std::vector<ReplicaReason> ReasonsOf(ExpertId expert, std::span<const DispatchTable> before,
                                     std::span<const DispatchTable> after, const Routes& routes, int32_t workers);

// Of the replicas that `after` has and `before` has not, those that save most first (then by expert and worker), at
// most `most`. Nothing where nothing was in force.
std::vector<ReplicaReason> ReasonsForMoves(std::span<const DispatchTable> before, std::span<const DispatchTable> after,
                                           const Routes& routes, int32_t workers, size_t most);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_REASONS_H_
