// Where shares cannot be level everywhere: which experts make up which of the groups of workers that can be.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPS_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPS_H_

#include <cstdint>
#include <span>
#include <vector>

namespace ballast {

// Some of a layer's experts on workers of their own.
struct ExpertGroup {
  std::vector<int32_t> experts;
  // Workers, and those of them that have a slot more.
  int32_t workers = 0;
  int32_t large = 0;
};

// Groups one layer's experts for shares on `workers` workers of equal speed, with `slots` slots each and `large` of
// them with one more, where the experts are more than the slots less one a worker.
//
// Replicas tie workers together: m workers of S slots that chains of shared experts join hold at most m * (S - 1) + 1
// experts, and the busiest has at least their load over m. The other way round, the generalised alias method (alias.h)
// makes any m * (S - 1) + 1 experts exactly level on m workers. So the least load of the busiest worker, over all
// placements and all shares, is the least over all ways to part the experts into such groups of the greatest load over
// workers of a group; and since groups that are not full can be joined, experts - workers * (S - 1) full ones will do.
// With slots of two sizes, one apart, all of this holds with the sum of slots less one in place of m * (S - 1).
//
// That is searched, by annealing: two experts change groups, a worker moves with as many experts as it has slots less
// one, or one expert moves while a large worker and another change places. Every group is full. O(1) a proposal, about
// 25 ns. The same input gives the same groups.
std::vector<ExpertGroup> GroupExperts(std::span<const double> tokens, int32_t workers, int32_t slots, int32_t large,
                                      int64_t proposals);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPS_H_
