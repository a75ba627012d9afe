// Local search for packings: what equal split needs, and what one placement for several loads needs.
#ifndef BALLAST_CONTROLLER_PLANNER_SEARCH_H_
#define BALLAST_CONTROLLER_PLANNER_SEARCH_H_

#include <cstdint>
#include <span>
#include <vector>

#include "controller/planner/packs.h"

namespace ballast {

struct SearchOptions {
  // Changes that are tried; about 0.1 us each, times the scenarios.
  int32_t proposals = 200'000;
  // Whether replicas may change expert (a spare one of another becomes one of this), or only places.
  bool recount = true;
};

// Improves one layer's packs for equal split under every one of `scenarios` ([scenarios][experts] tokens) at once, the
// worst counting most: annealing on the 16-norm of the workers' loads, each scenario's mean being 1, by swapping two
// replicas or turning a spare replica of one expert into one of another. Packs keep their sizes, experts stay distinct
// within a pack and keep a replica each. Of the states seen, the one with the lowest norm, never worse than the
// start's. The same input gives the same packs; scenarios without load are ignored.
void ImprovePacks(std::span<const std::vector<double>> scenarios, const SearchOptions& options, Packs& packs);

// The greedy start: one replica more, as long as slots are left, for the expert with most tokens a replica (at most one
// a worker), and then the heaviest replicas first to the lightest worker with a free slot that lacks the expert.
// `slots` [workers] sum to at least the number of experts.
Packs PackGreedily(std::span<const double> tokens, std::span<const int32_t> slots);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_SEARCH_H_
