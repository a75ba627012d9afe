// Local search for packings: what equal split needs, and what one placement for several loads needs.
#ifndef BALLAST_CONTROLLER_PLANNER_SEARCH_H_
#define BALLAST_CONTROLLER_PLANNER_SEARCH_H_

#include <cstdint>
#include <span>
#include <vector>

#include "controller/planner/packs.h"

namespace ballast {

// One layer to be packed for equal split.
struct LayerProblem {
  // [scenarios][experts], at least 0. Only proportions within a scenario count; one without load is ignored.
  std::vector<std::vector<double>> tokens;
  // [workers], as in Topology; empty: all alike.
  std::vector<uint32_t> speed;
  // [scenarios], at least 0: what a scenario's busiest worker counts. Empty: only the worst scenario counts.
  std::vector<double> weight;
};

// What is minimised: the busiest worker's tokens over speed, over the mean, in the worst scenario; or the mean over
// the scenarios by weight. 1 is level; 1 where nothing is loaded.
double Imbalance(const LayerProblem& problem, const Packs& packs);

struct SearchOptions {
  // Changes that are tried, 20 to 60 ns each up to eight scenarios, in one run or, where they are many, several from
  // different seeds; no run follows one that ended level within a thousandth or at the proven bound. 0: three runs of
  // 1,400 a slot.
  int64_t proposals = 0;
  // Whether replicas may change expert (a spare one of another becomes one of this), or only places.
  bool recount = true;
};

// Improves packs by annealing: two replicas change workers, or a spare replica of one expert becomes one of another.
// The workers' loads are summed to a growing power, which in the end only the busiest worker of the worst scenario
// counts in. Packs keep their sizes, experts stay distinct within a pack and keep a replica each. Never worse than the
// start by Imbalance. The same input gives the same packs.
void ImprovePacks(const LayerProblem& problem, const SearchOptions& options, Packs& packs);

// The greedy start: one replica more, as long as slots are left, for the expert with most tokens a replica (at most one
// a worker), and then the heaviest replicas first to the worker that they leave lightest, of those with a free slot
// that lack the expert. `tokens` [experts] stand for all scenarios.
Packs PackGreedily(std::span<const double> tokens, std::span<const int32_t> slots,
                   std::span<const uint32_t> speed = {});

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_SEARCH_H_
