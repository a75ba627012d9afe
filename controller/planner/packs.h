// What policies do with the packs of experts that they build: one pack a worker, one layer at a time.
#ifndef BALLAST_CONTROLLER_PLANNER_PACKS_H_
#define BALLAST_CONTROLLER_PLANNER_PACKS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "proto/placement/quotas.h"

namespace ballast {

// [workers][experts of the pack]
using Packs = std::vector<std::vector<int32_t>>;

// Makes every pack's experts distinct, see EplbPolicy. Every expert keeps at least one replica. No pack may be larger
// than the number of experts, and every expert must be in one.
void MakeDistinct(std::span<const double> tokens, Packs& packs);

// The same packs in another order: the one that leaves most replicas on workers that hold them in `current`. Packs only
// change places within blocks of `block` workers, and blocks with each other (block == workers: all with all). Exact
// for up to 128 places, from there on greedy. Where nothing is gained a pack stays with its worker.
Packs Relabel(const Packs& packs, const DispatchTable& current, int32_t block);

// The same where packs may only go to workers of the same `kind` [workers] as the one that they were made for.
Packs Relabel(const Packs& packs, const DispatchTable& current, std::span<const int32_t> kind);

// [packs] where each of them goes then.
std::vector<int32_t> StayingPlaces(const Packs& packs, const DispatchTable& current, std::span<const int32_t> kind);

// Weights 0: to be solved.
DispatchTable ToTable(const Packs& packs, int32_t experts);

// The assignment column[row] of an n x n matrix of values (row after row) with the greatest sum (Hungarian method,
// O(n^3)).
std::vector<int32_t> BestAssignment(std::span<const int64_t> values, int32_t n);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_PACKS_H_
