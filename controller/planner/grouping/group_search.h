// Which experts live together, and which twice: homes, replicas and balance of one layer searched at once, on the hops
// of tokens.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_GROUP_SEARCH_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_GROUP_SEARCH_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "controller/planner/grouping/routes.h"
#include "controller/planner/packs.h"
#include "proto/placement/quotas.h"

namespace ballast {

struct GroupLimits {
  // What MaxVio of the layer may be for the mix, in the routes that are planned for, with the shares that come with the
  // placement; other tokens of the same tasks come out higher, by the noise of their number. Where no placement is
  // found that holds it the excess is as small as search makes it: a pair beyond counts as two hops.
  double maxvio = .06;
  // The same for every task alone, shares chosen anew for it: in each of the parts of its tokens that TasksAlone takes,
  // so that it holds for others, too. It comes before hops, which are minimised within it. Where it is below 1.1 times
  // what no placement in as many slots is below (LeastTaskMaxVio), that is the limit; where search finds no placement
  // within it, as little as it finds beyond.
  double task_maxvio = std::numeric_limits<double>::infinity();
};

struct GroupProblem {
  // Must outlive the call.
  const LayerRoutes* layer = nullptr;
  // [workers] slots; at most as many as experts are used. Together at least as many as experts.
  std::span<const int32_t> slots;
  // [workers], as in Topology; empty: all alike.
  std::span<const uint32_t> speed;
  // [workers] what a copy of a token to this worker costs, 1 on average; empty: all alike.
  std::span<const double> price;
  GroupLimits limits;
  // What stands: the search starts from it and keeps the nearest of equally good ones. Every expert has a worker and no
  // worker holds more than its slots. Absent: from the spectral clusters of pooled co-activation.
  std::optional<Packs> current;
  // With `current`: hops a token that a replica in a new place must save, and how many there may be at most. The price
  // is lower where all replicas in new places would have to save more than 3 % of the hops: so what is found is at most
  // that much worse than a placement from nothing, but for what search leaves.
  double move_price = 0;
  int32_t max_moves = std::numeric_limits<int32_t>::max();
  // Changes that are tried; with `current` half as many, for there are two ways to go on from it. 0: 4,000 a slot, at
  // most 10 million blocks of tokens of 64 experts (cover.h) in all, fewer where experts have many replicas: a second
  // or so.
  int64_t proposals = 0;
  // With `current`: the search starts from nothing all the same. Then workers that are alike change names, such that
  // most replicas stay, and what a short search from there finds moves back. Few moves end in a local optimum, which
  // this leaves; max_moves does not count.
  bool anew = false;
};

struct GroupedLayer {
  // Workers of each expert ascending; weights are the shares that the search planned with.
  DispatchTable table;
  // Of the routes that it was planned for, with free choice among replicas (cover.h): hops a token and MaxVio of the
  // mix. And of the worst task alone, with shares solved for it.
  double hops = 0;
  double maxvio = 0;
  double task_maxvio = 0;
  // With a placement in force: replicas in new places, and what is minimised but for the price of moves, before (with
  // free choice among the replicas in force) and after.
  int64_t moves = 0;
  double cost_before = 0;
  double cost = 0;
  // What each move counted as.
  double move_price = 0;
  // What is won, the moves' price taken off.
  double Net() const { return cost_before - cost - move_price * static_cast<double>(moves); }
};

// [workers] equal for those that can change names: as many slots, as fast, as dear to reach. `speed` and `price` as in
// GroupProblem.
std::vector<int32_t> AlikeWorkers(std::span<const int32_t> slots, std::span<const uint32_t> speed,
                                  std::span<const double> price);

// Annealing, from there on: two replicas change workers; a spare replica of one expert becomes one of another; tokens
// that are free to choose among an expert's replicas choose another one. First single tasks alone are brought within
// their limit (tasks_alone.h). Then what is minimised is hops a token, weighted by price, plus what is beyond the
// limits, plus moves, and no change is kept that takes single tasks further beyond theirs. Each change is judged
// exactly, on the tokens that choose the experts concerned (cover.h). The same input gives the same output, on every
// machine.
GroupedLayer GroupExpertsByRoutes(const GroupProblem& problem);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_GROUP_SEARCH_H_
