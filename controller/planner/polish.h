// The last touch to packs that were searched for equal split and will be served with shares.
#ifndef BALLAST_CONTROLLER_PLANNER_POLISH_H_
#define BALLAST_CONTROLLER_PLANNER_POLISH_H_

#include <cstdint>

#include "controller/planner/packs.h"
#include "controller/planner/search.h"

namespace ballast {

struct PolishOptions {
  // Pairs of replicas that are tried: about 2 us each for 300 slots, and 100 where shares have to be solved, and fewer
  // of them the more slots there are beyond that.
  int32_t tries = 8000;
  // How much worse equal split may get, of its Imbalance.
  double slack = .003;
};

// Two replicas change workers where that lowers the load of the busiest worker, shares being solved for each scenario,
// in the scenario where it is highest, and in no other above it: between workers that nothing more can be taken from
// and others. Kept within `slack` of equal split, for packs made for shares alone serve unseen loads worse. The same
// input gives the same packs.
void PolishForShares(const LayerProblem& problem, const PolishOptions& options, Packs& packs);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_POLISH_H_
