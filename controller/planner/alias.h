// Placements that traffic shares can make level, by construction: the alias method, generalised.
#ifndef BALLAST_CONTROLLER_PLANNER_ALIAS_H_
#define BALLAST_CONTROLLER_PLANNER_ALIAS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "controller/planner/packs.h"

namespace ballast {

// Places one layer's experts, distinct within a worker, every slot filled while an expert is left that the worker
// lacks. `slots` [workers], not used beyond the number of experts; together at least as many as experts. `speed`
// [workers] as in Topology; empty: all alike.
//
// Equal speeds, slots at most one apart, experts <= slots - workers + 1 (for equal slots: workers * (slots - 1) + 1):
// exactly level, whatever the load, with fewer than `workers` extra replicas. Of the experts in order of load, the
// first window of slots - 1 neighbours that together with the next expert reaches the mean goes to one worker, which a
// piece of that next expert fills up to the mean; what is left is the same problem with a worker less. The first window
// cannot be above the mean and the last window and its next not below, so there is always one; those with fewer slots
// come first. O(E log E + D E).
//
// The same with more experts: within groups of workers, found by search (groups.h); EPLB's
// placement where that is better. With one slot each: the greedy counts, which are optimal.
//
// Workers that differ more: each is filled in the same way up to its part of a level, those with most speed a slot
// first and from the heavy end where no window suffices; the lowest level at which everything finds a place is bisected
// from the proven bound up. Equal-split search (search.h) where that comes out better.
//
// What slots are left over take further replicas of the experts with most tokens a replica, which shares for other
// loads can use.
Packs PlaceLevel(std::span<const double> tokens, std::span<const int32_t> slots, std::span<const uint32_t> speed = {});
Packs PlaceLevel(std::span<const double> tokens, int32_t workers, int32_t slots);

// The same as a table. Where it is exactly level its weights are the pieces of the construction, which make it so; else
// they are 0: to be solved.
DispatchTable LevelTable(std::span<const double> tokens, std::span<const int32_t> slots,
                         std::span<const uint32_t> speed = {});

// Tokens over speed of the busiest worker with shares solved for `tokens`.
double SolvedLevel(const Packs& packs, std::span<const double> tokens, std::span<const uint32_t> speed = {});

// Sets the table's weights to the shares solved for `tokens`.
void SolveWeights(std::span<const double> tokens, std::span<const uint32_t> speed, int32_t workers,
                  DispatchTable& table);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_ALIAS_H_
