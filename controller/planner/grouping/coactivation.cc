#include "controller/planner/grouping/coactivation.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "controller/planner/grouping/affinity.h"
#include "controller/planner/grouping/spectral.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// As many experts on each worker as its slots allow, level.
std::vector<int32_t> HomeSizes(int32_t experts, std::span<const int32_t> slots) {
  std::vector<int32_t> sizes(slots.size());
  for (int32_t left = experts; left > 0;) {
    const int32_t before = left;
    for (size_t w = 0; w < slots.size() && left > 0; ++w) {
      if (sizes[w] == slots[w]) continue;
      ++sizes[w];
      --left;
    }
    BALLAST_CHECK(left < before) << left << " experts more than slots";
  }
  return sizes;
}

}  // namespace

void FillSlots(std::span<const double> load, std::span<const int32_t> slots, int64_t most, Packs& packs) {
  std::vector<int32_t> replicas(load.size());
  for (const std::vector<int32_t>& pack : packs) {
    for (const int32_t e : pack) ++replicas[e];
  }
  for (bool filled = true; filled;) {
    filled = false;
    for (size_t w = 0; w < packs.size(); ++w) {
      if (most == 0 || static_cast<int32_t>(packs[w].size()) >= slots[w]) continue;
      int32_t best = -1;
      for (int32_t e = 0; e < static_cast<int32_t>(load.size()); ++e) {
        if (std::find(packs[w].begin(), packs[w].end(), e) != packs[w].end()) continue;
        if (best < 0 || load[e] * replicas[best] > load[best] * replicas[e]) best = e;
      }
      if (best < 0) continue;
      packs[w].push_back(best);
      ++replicas[best];
      --most;
      filled = true;
    }
  }
}

Packs PlaceCoactivation(const LayerRoutes& layer, std::span<const int32_t> slots, bool swaps) {
  const Affinity pooled = Pool(Statistics(layer));
  // Workers without any expert take no part in clustering.
  const std::vector<int32_t> sizes = HomeSizes(layer.experts, slots);
  std::vector<int32_t> workers, used;
  for (size_t w = 0; w < sizes.size(); ++w) {
    if (sizes[w] == 0) continue;
    workers.push_back(static_cast<int32_t>(w));
    used.push_back(sizes[w]);
  }
  Packs homes = RepairSizes(pooled, SpectralClusters(pooled, static_cast<int32_t>(used.size())), used);
  if (swaps) SwapPacks(pooled, homes);
  Packs packs(slots.size());
  for (size_t i = 0; i < workers.size(); ++i) packs[workers[i]] = std::move(homes[i]);
  FillSlots(MixLoad(layer), slots, std::numeric_limits<int64_t>::max(), packs);
  return packs;
}

}  // namespace ballast
