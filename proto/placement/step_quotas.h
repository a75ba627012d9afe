// A step's quotas from the step's own counts: how many of each source's tokens for each expert go to each of its
// replicas, so that the busiest rank has as little to do as can be.
//
// Small and fast enough for every rank to run in every layer of every step, in place of telling each other the answer.
#ifndef BALLAST_PROTO_PLACEMENT_STEP_QUOTAS_H_
#define BALLAST_PROTO_PLACEMENT_STEP_QUOTAS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "proto/placement/quotas.h"
#include "proto/placement/shares.h"

namespace ballast {

// Two stages: the flow to each replica is the exact minimum of the busiest rank's load (ShareSolver, on the counts of
// all sources together); it is then split over the sources. Integers alone and no state from call to call, so every
// rank that knows the counts computes the same bits. Holds its scratch: nothing is allocated after construction. One
// thread at a time.
class StepQuotaSolver {
 public:
  // `table` names each replica's rank, below `num_ranks`, and must outlive the solver; its weights are not read.
  // `speed` [ranks]: each rank's relative speed, 1 to 2^10; empty: all alike.
  StepQuotaSolver(const DispatchTable& table, int32_t num_ranks, std::span<const uint32_t> speed = {});

  // Stage one. `counts` is [sources][experts], each at least 0, an expert's summing to less than 2^31. Returns the
  // bound z of the busiest rank: with speeds all alike its load, the least there is; otherwise no rank has more than
  // z * speed / (largest speed), and no lower z will do.
  int64_t Solve(std::span<const int32_t> counts, int32_t sources);

  // Of the last Solve: tokens to each replica, [replicas], summing to an expert's count where it has a replica; tokens
  // to each rank, [ranks].
  std::span<const int64_t> flow() const { return flow_; }
  std::span<const int64_t> rank_loads() const { return shares_.rank_loads(); }

  // Stage two, for the `counts` of the last Solve: `quotas` [sources][replicas]. An expert's quotas of one source sum
  // to counts[source][expert], those of one replica to flow()[replica], both exactly; and each lies at most one token
  // from the source's exact part of the flow, counts[source][expert] * flow / expert's count. Where roundings are
  // equally good the source's own replica gets the token. Source s is rank s, so there are at most as many as ranks.
  void Split(std::span<const int32_t> counts, int32_t sources, std::span<int32_t> quotas);
  // The row of `source` alone, [replicas]: the same bits.
  void SplitOne(std::span<const int32_t> counts, int32_t sources, int32_t source, std::span<int32_t> quotas);

 private:
  // Of an expert with two replicas; leaves its quotas in parts_.
  void SplitPair(int32_t expert, const int32_t* column, int32_t sources);
  template <typename Emit>
  void SplitShared(std::span<const int32_t> counts, int32_t sources, const Emit& emit);

  const DispatchTable& table_;
  ShareSolver shares_;
  std::vector<int32_t> single_;        // experts with one replica
  std::vector<int32_t> single_first_;  // their replicas
  std::vector<int32_t> shared_;        // experts with two replicas or more
  std::vector<int32_t> loads32_;       // [experts]
  std::vector<int64_t> loads_;         // [experts]
  std::vector<int64_t> flow_;          // [replicas]
  // Of one expert: its quotas, [sources][its replicas]; places that rounding down left, and an order, by replica.
  std::vector<int32_t> parts_;
  std::vector<int64_t> left_;
  std::vector<int32_t> order_;
};

// Both stages at once: `counts` [sources][experts] in, `quotas` [sources][replicas] out. Returns Solve's bound.
int64_t SolveStepQuotas(StepQuotaSolver& solver, std::span<const int32_t> counts, int32_t sources,
                        std::span<int32_t> quotas);

}  // namespace ballast

#endif  // BALLAST_PROTO_PLACEMENT_STEP_QUOTAS_H_
