// What the kernel of choice_kernel.h computes, in plain words: for tests.
#ifndef BALLAST_WORKER_MOE_CHOICE_REFERENCE_H_
#define BALLAST_WORKER_MOE_CHOICE_REFERENCE_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "proto/placement/quotas.h"

namespace ballast {

// `quotas` [replicas] are this rank's for the pairs of rows that have not failed; `failed` [rows], `near` and `homes`
// [rows, or empty] as ChoiceArgs. Returns the replica, an index into `table`, of each of the [rows][top_k] pairs; -1:
// its row has failed.
//
// Pairs with one replica to go to come first. Then each expert's other pairs take quota in sweeps, each content with
// less: the only one of its ranks that a row visits for a pair without a choice; one of several such; the own rank; a
// near one; a home of the row's task; any. In a sweep replicas come in the table's order, and to each the rows that
// want it in theirs. AssignReplicas lets more pairs ride along, but one expert's pairs wait for another's there.
inline std::vector<int32_t> ReferenceChoice(const DispatchTable& table, int own_rank, uint32_t near,
                                            std::span<const uint32_t> homes, std::span<const int32_t> ids, int top_k,
                                            std::span<const int32_t> failed, std::vector<int32_t> quotas) {
  constexpr int32_t kOpen = -2;
  std::vector<int32_t> replicas(ids.size(), -1);
  std::vector<uint32_t> visited(failed.size(), 0);
  for (size_t pair = 0; pair < ids.size(); ++pair) {
    const size_t row = pair / top_k;
    const int32_t first = table.begin[ids[pair]];
    if (failed[row] >= 0) continue;
    const bool single = table.begin[ids[pair] + 1] - first == 1;
    replicas[pair] = single ? first : kOpen;
    if (single) visited[row] |= 1u << table.rank[first];
  }
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    uint32_t ranks = 0;
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) ranks |= 1u << table.rank[r];
    const std::function<bool(size_t, uint32_t)> sweeps[] = {
        [&](size_t row, uint32_t bit) { return (visited[row] & ranks) == bit; },
        [&](size_t row, uint32_t bit) { return (visited[row] & bit) != 0; },
        [&](size_t, uint32_t bit) { return bit == 1u << own_rank; },
        [&](size_t, uint32_t bit) { return (near & bit) != 0; },
        [&](size_t row, uint32_t bit) { return !homes.empty() && (homes[row] & bit) != 0; },
        [&](size_t, uint32_t) { return true; },
    };
    for (const auto& wants : sweeps) {
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        for (size_t pair = 0; pair < ids.size() && quotas[r] > 0; ++pair) {
          if (ids[pair] != e || replicas[pair] != kOpen || !wants(pair / top_k, 1u << table.rank[r])) continue;
          replicas[pair] = r;
          --quotas[r];
        }
      }
    }
  }
  return replicas;
}

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_CHOICE_REFERENCE_H_
