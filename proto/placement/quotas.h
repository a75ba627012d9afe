// Dispatch: from traffic shares to integer quotas to a replica for every (token, expert) pair of one layer and one
// step.
//
// Pure and allocation-free: callers pass every buffer. Integer arithmetic only, so every rank that knows a source's
// counts computes the same bits. Not bound to a thread.
#ifndef BALLAST_PROTO_PLACEMENT_QUOTAS_H_
#define BALLAST_PROTO_PLACEMENT_QUOTAS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "proto/placement/placement.h"

namespace ballast {

// The live replicas of one layer, by rank of the view in force. Expert e's replicas are the indices
// begin[e] .. begin[e + 1], in the placement's order; none if no worker that holds it is in the view.
struct DispatchTable {
  std::vector<int32_t> begin;    // [experts + 1]
  std::vector<int32_t> rank;     // [replicas]
  std::vector<uint32_t> weight;  // [replicas], at least 1; an expert's sum is below 2^32 (Validate sees to it)
  int32_t num_experts() const { return static_cast<int32_t>(begin.size()) - 1; }
  int32_t num_replicas() const { return static_cast<int32_t>(rank.size()); }
};

// `rank_of_worker` [workers of the placement]: the worker's rank in the view, or -1 when it is not in it.
DispatchTable MakeDispatchTable(const LayerReplicas& layer, std::span<const int32_t> rank_of_worker);

// Splits `counts` [experts] (one source's tokens by expert, below 2^31) over the replicas in proportion to their
// weights: `quotas` [replicas]. For every expert with a live replica the quotas sum to its count exactly and each lies
// less than one token from its exact share, count * weight / sum. An expert without a live replica is left out.
//
// The fractions are rounded against a threshold that `rotation` turns (systematic rounding with a golden-ratio
// sequence), not against the largest of them: where each of many sources has one token for an expert, largest
// remainder would send every one to the heaviest replica, while here the sum over consecutive rotations meets the
// shares too. `rotation` is the source's rank, plus the step number where the ranks agree on it.
void SolveQuotas(const DispatchTable& table, std::span<const int32_t> counts, uint32_t rotation,
                 std::span<int32_t> quotas);

// What AssignReplicas knows of the source's surroundings.
struct DispatchSource {
  int32_t rank = 0;
  // [ranks] the node each rank runs on; empty: all on one.
  std::span<const int32_t> node_of_rank;
  // The homes of the tokens' tasks: `is_home` [groups][ranks] is not 0 where a rank is a home of the group, and
  // `home_group` [tokens] is each token's group, -1: its task has no homes. Empty: no token's has.
  std::span<const int32_t> home_group;
  std::span<const uint8_t> is_home;
  int32_t num_ranks = 0;  // of is_home
};

// Chooses a replica for each pair so that the quotas are met exactly. `experts` [tokens][top_k], row after row, an
// entry of -1 is no pair; `replica_of_pair`, of the same shape, gets indices into `table`, -1 where there is no pair or
// the expert has no live replica. `quotas` [replicas] must sum, expert by expert, to the number of its pairs; on return
// all are 0.
//
// Experts with one usable replica come first, for they have no choice. Each other pair prefers a rank that its token
// visits already, then the source itself, then a rank of the source's node, then a home of the token's task, then the
// replica with most quota left.
void AssignReplicas(const DispatchTable& table, const DispatchSource& source, std::span<const int32_t> experts,
                    int32_t top_k, std::span<int32_t> quotas, std::span<int32_t> replica_of_pair);

}  // namespace ballast

#endif  // BALLAST_PROTO_PLACEMENT_QUOTAS_H_
