// What the kernel of choice_kernel.h computes, in plain words: for tests.
#ifndef BALLAST_WORKER_MOE_CHOICE_REFERENCE_H_
#define BALLAST_WORKER_MOE_CHOICE_REFERENCE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "proto/placement/quotas.h"

namespace ballast {

// `quotas` [replicas] are this rank's for the pairs of rows that have not failed; `failed` [rows] as ChoiceArgs.
// Returns the replica, an index into `table`, of each of the [rows][top_k] pairs; -1: its row has failed.
//
// Pairs with one replica to go to come first. Each other pair, expert by expert and row by row, takes quota in three
// sweeps, each content with less: on a rank that its row visits for a pair without a choice, on the own rank, anywhere;
// where several will do, from the replica with the most quota left. AssignReplicas lets more pairs ride along, but one
// expert's pairs wait for another's there.
inline std::vector<int32_t> ReferenceChoice(const DispatchTable& table, int own_rank, std::span<const int32_t> ids,
                                            int top_k, std::span<const int32_t> failed, std::vector<int32_t> quotas) {
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
    for (int sweep = 0; sweep < 3; ++sweep) {
      for (size_t pair = 0; pair < ids.size(); ++pair) {
        if (ids[pair] != e || replicas[pair] != kOpen) continue;
        int32_t best = -1;
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
          if (sweep == 0 && (visited[pair / top_k] >> table.rank[r] & 1) == 0) continue;
          if (sweep == 1 && table.rank[r] != own_rank) continue;
          if (quotas[r] > 0 && (best < 0 || quotas[r] > quotas[best])) best = r;
        }
        if (best < 0) continue;
        replicas[pair] = best;
        --quotas[best];
      }
    }
  }
  return replicas;
}

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_CHOICE_REFERENCE_H_
