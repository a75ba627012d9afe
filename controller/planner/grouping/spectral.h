// Groups of exact sizes from affinities: spectral clustering, and the repair that makes sizes exact.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_SPECTRAL_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_SPECTRAL_H_

#include <cstdint>
#include <span>
#include <vector>

#include "controller/planner/grouping/affinity.h"
#include "controller/planner/packs.h"

namespace ballast {

struct SpectralOptions {
  // Added to the diagonal of the affinities, which are scaled to a maximum of 1: keeps degrees above 0.
  double jitter = 1e-6;
  // k-means runs from different seeds (k-means++, fixed sequence); the one of least inertia counts.
  int32_t restarts = 10;
  int32_t iterations = 100;
};

// [experts] cluster of each, of `clusters`: k-means on the rows of the eigenvectors that belong to the smallest
// eigenvalues of I - D^-1/2 A D^-1/2, as many as clusters. Clusters may be of any size, also empty. O(experts^3).
std::vector<int32_t> SpectralClusters(const Affinity& affinity, int32_t clusters, const SpectralOptions& options = {});

// Makes packs of exactly `sizes` (which sum to the experts) from clusters: one that is too large keeps the experts of
// most affinity to it as it is, the others go, strongest first, to the pack with room that they have most affinity to.
Packs RepairSizes(const Affinity& affinity, std::span<const int32_t> cluster, std::span<const int32_t> sizes);

// The affinity within packs, each pair counted twice, as the published objective does.
double WithinAffinity(const Affinity& affinity, const Packs& packs);

// Two experts of different packs change places for as long as that raises the affinity within packs.
void SwapPacks(const Affinity& affinity, Packs& packs);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_SPECTRAL_H_
