// Traffic shares for a given placement of one layer: how many of each expert's tokens go to each replica so that the
// busiest rank has as little to do as can be. The planner solves it for a window's load, a worker for a step's counts.
#ifndef BALLAST_PROTO_PLACEMENT_SHARES_H_
#define BALLAST_PROTO_PLACEMENT_SHARES_H_

#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "proto/placement/quotas.h"

namespace ballast {

// Exact, in integers: every rank that solves the same loads gets the same bits. Holds its scratch: Solve allocates
// nothing, but for the first problem with so many ranks and replicas that it takes UnloadTogether. One thread at a
// time.
class ShareSolver {
 public:
  // `table` names each replica's rank, below `num_ranks`; its weights are not read. `speed` [ranks] is each rank's
  // relative speed, 1 to 2^10, in units of `unit`: where loads are large it can stay 1; where they are few tokens the
  // largest speed makes the bound as fine as tokens are. Empty: all alike. `most_searched`: ranks and replicas that are
  // looked at in search of one chain of shared experts after the other, before chains are searched for all ranks
  // together; the default is far more than layers of hundreds of ranks take.
  ShareSolver(const DispatchTable& table, int32_t num_ranks, std::span<const uint32_t> speed = {}, uint32_t unit = 1,
              int64_t most_searched = 1'000'000);

  // Another table over the same ranks.
  void Reset(const DispatchTable& table);

  // Splits `loads` [experts] (at least 0, summing to at most 2^42) over the replicas: `flow` [replicas] sums to an
  // expert's load where it has a replica. Returns the least integer z for which every rank r can have at most
  // z * speed[r] / unit tokens: with speeds all alike, the least possible load of the busiest rank. Where that is above
  // `most` it may stop early: it returns some number above `most` that z is not below, and `flow` is of no use.
  int64_t Solve(std::span<const int64_t> loads, std::span<int64_t> flow,
                int64_t most = std::numeric_limits<int64_t>::max());

  // The load of each rank, [ranks], in the last solution.
  std::span<const int64_t> rank_loads() const { return load_; }

 private:
  int64_t Capacity(int64_t z, int32_t rank) const { return speed_.empty() ? z : z * speed_[rank] / unit_; }
  void FillLevel(int32_t expert, int64_t load, std::span<int64_t> flow);
  // Moves what `rank` has above its capacity along chains of shared experts to ranks with room, as long as searched_
  // is within its limit. False when the ranks it reaches, left in reached_, have none.
  bool Unload(int32_t rank, int64_t z, std::span<int64_t> flow);
  // The same for all ranks at once, a level of chains at a time (Dinic's blocking flows): a chain at a time takes too
  // long where there are thousands of ranks, each with little above its capacity. Whoever is left above it stays in
  // reached_, with what it reaches; empty: nobody.
  void UnloadTogether(int64_t z, std::span<int64_t> flow);
  // Levels of the ranks and experts that chains from ranks above their capacity lead to. False: none has room.
  bool FindLevels(int64_t z, std::span<const int64_t> flow);
  // What such chains can take from `rank`.
  void UnloadByLevels(int32_t rank, int64_t z, std::span<int64_t> flow);
  // The least that z can be where those in reached_ are left above their capacities.
  int64_t NextLevel(int64_t z) const;

  std::vector<int32_t> begin_;   // as in the table
  std::vector<int32_t> rank_;    // as in the table
  std::vector<uint32_t> speed_;  // empty: all 1
  int64_t unit_;                 // of speed_
  int64_t most_searched_;
  std::vector<int32_t> shared_;          // experts with two replicas or more
  std::vector<int32_t> rank_begin_;      // [ranks + 1] into rank_replica_
  std::vector<int32_t> rank_replica_;    // replicas of shared experts, by rank
  std::vector<int32_t> replica_expert_;  // [replicas], of shared experts
  std::vector<int64_t> load_;            // [ranks]
  // Breadth-first search: the ranks reached, and the replicas that each was reached from and by.
  std::vector<int32_t> reached_;
  std::vector<int32_t> from_;  // [ranks], replica that gives; -1: not reached, -2: the start
  std::vector<int32_t> by_;    // [ranks], replica that takes
  std::vector<int32_t> seen_;  // [experts], the search that looked at the expert last
  int32_t search_ = 0;
  int64_t searched_ = 0;  // ranks and replicas that the searches of a solution looked at
  // UnloadTogether: how far ranks and experts are from the ranks above their capacity; -1: not reached.
  std::vector<int32_t> rank_level_;
  std::vector<int32_t> expert_level_;
  std::vector<int32_t> next_give_;                  // [ranks] into rank_replica_: what was not tried yet at this level
  std::vector<int32_t> next_take_;                  // [experts] the same: replicas
  std::vector<std::pair<int32_t, int32_t>> chain_;  // replicas that give and take
  std::vector<int32_t> order_;                      // scratch of FillLevel
  std::vector<int32_t> next_;                       // scratch of Reset
};

// The shares of a solution as replica weights, expert by expert: proportional to `flow`, summing to about 2^20, at
// least 1; all 1 where an expert has one replica or no load.
void FlowToWeights(std::span<const int64_t> flow, DispatchTable& table);

}  // namespace ballast

#endif  // BALLAST_PROTO_PLACEMENT_SHARES_H_
