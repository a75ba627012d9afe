// The published grouping by task-conditioned co-activation (TACG) and its replicas (GESR): Xu et al., arXiv 2606.01007,
// equations 2 to 15. What the paper leaves open is marked "open".
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_TACG_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_TACG_H_

#include <cstdint>
#include <span>
#include <vector>

#include "controller/planner/grouping/affinity.h"
#include "controller/planner/grouping/hops.h"
#include "controller/planner/grouping/spectral.h"
#include "controller/planner/topology.h"

namespace ballast {

struct TacgOptions {
  double alpha = .25;
  // Open: the temperature and the denominator's epsilon.
  double temperature = 1;
  double epsilon = 1e-6;
  SpectralOptions spectral;
  // Not published: experts change places after the repair for as long as the objective (9) rises.
  bool swaps = false;
};

// [tasks][experts] (2) to (6): how much a task prefers an expert; an expert's sum to 1.
std::vector<std::vector<double>> TaskPreference(const std::vector<TaskStatistics>& tasks, const TacgOptions& options);

// (7) and (8). alpha 0: pooled co-activation, scaled to a maximum of 1.
Affinity TaskAffinity(const std::vector<TaskStatistics>& tasks, const TacgOptions& options);

// One layer's homes: packs of `sizes` [workers], which sum to the experts. Spectral clusters of (8), repaired (10).
// Open: which pack belongs to which task's workers; here those that the assignment of greatest preference gives, tasks
// having as many consecutive workers each. Packs go to workers of their size.
Packs PlaceTacg(const std::vector<TaskStatistics>& tasks, std::span<const int32_t> sizes, const TacgOptions& options);

struct GesrOptions {
  int32_t experts = 8;
  int32_t secondaries = 2;
  double consistency = 0;  // lambda 1
  double specificity = 0;  // lambda 2
};

// (11): how generic experts are.
std::vector<double> GenericScore(const std::vector<TaskStatistics>& tasks, const GesrOptions& options);

// (12): adds the most generic experts to the workers besides their home that have most affinity to them, by the packs
// without replicas. `room` [workers]: slots that are left, and taken by the most generic first; empty, as published: no
// limit.
void ReplicateGeneric(const std::vector<TaskStatistics>& tasks, const Affinity& affinity, const GesrOptions& options,
                      std::span<const int32_t> room, Packs& packs);

struct GuardOptions {
  double theta = .15;
  double decay = .995;
};

// Serving as published, (13) to (15): token after token, an expert goes to one of its workers whose recent load is at
// most 1 + theta of the mean, or to any of them where there is none. Open: the order of a token's experts; here those
// with one worker first. Open, too: the order among workers; here one that the token visits already, then the token's
// own, then one of its task's, then the least loaded, then the first. Tokens take turns as in ScoreHops. Loads are kept
// by layer and decay by token.
std::vector<HopScore> ScoreGuarded(std::span<const Packs> layers, const Routes& routes, const Topology& topology,
                                   const GuardOptions& options);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_TACG_H_
