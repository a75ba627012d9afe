// Decides where each of a layer's (row, expert) pairs goes: Count, then Assign within quotas for what was counted.
// Pure: no messages, no clock.
#ifndef BALLAST_WORKER_MOE_DISPATCH_PLAN_H_
#define BALLAST_WORKER_MOE_DISPATCH_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "proto/placement/quotas.h"

namespace ballast {

struct PlannedPair {
  int32_t expert = 0;
  float weight = 0;
  // Where it is computed; -1: its row has failed.
  int32_t rank = -1;
  // Index of the pair, and of its row, among those that go to `rank`, in the order of rows.
  int32_t pair_at_rank = 0;
  int32_t token_at_rank = 0;
};

// The plan of one layer of one step; keeps its memory. One thread.
class DispatchPlan {
 public:
  // Buffers for `capacity` rows.
  DispatchPlan(int num_experts, int top_k, int capacity);

  // First half: what is to be sent. `experts` and `weights` are [rows][top_k] as routed, `failed` [rows] is not 0 for
  // rows that take no part any more. A row that needs an expert without a replica in `table`, or has a weight that is
  // not finite, gets `failed` set and is put into newly_failed().
  void Count(const DispatchTable& table, std::span<const int32_t> experts, std::span<const float> weights,
             std::span<uint8_t> failed);
  // Pairs by expert, [experts].
  std::span<const int32_t> counts() const { return counts_; }

  // Second half: where to. `quotas` [replicas], which sum to counts() expert by expert, are used up.
  void Assign(const DispatchTable& table, const DispatchSource& source, int num_ranks, std::span<int32_t> quotas);

  // [rows][top_k], each row's by ascending expert.
  std::span<const PlannedPair> pairs() const { return pairs_; }
  std::span<const PlannedPair> row(int row) const { return pairs().subspan(static_cast<size_t>(row) * top_k_, top_k_); }
  // By rank.
  std::span<const int32_t> tokens_to() const { return tokens_to_; }
  std::span<const int32_t> pairs_to() const { return pairs_to_; }

  struct Failed {
    int32_t row = 0;
    int32_t expert = 0;
    // Its weight, not the expert, is what is wrong.
    bool not_finite = false;
  };
  std::span<const Failed> newly_failed() const { return newly_failed_; }

 private:
  const int top_k_;
  std::vector<PlannedPair> pairs_;
  std::vector<int32_t> tokens_to_;
  std::vector<int32_t> pairs_to_;
  std::vector<Failed> newly_failed_;
  std::vector<int32_t> experts_;   // of pairs_, -1 where the row failed
  std::vector<int32_t> replicas_;  // chosen
  std::vector<int32_t> counts_;    // [experts]
  std::vector<int32_t> last_row_;  // [ranks]
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_DISPATCH_PLAN_H_
