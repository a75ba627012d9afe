#include "worker/moe/dispatch_plan.h"

#include <algorithm>
#include <cmath>

#include "proto/base/check.h"

namespace ballast {

DispatchPlan::DispatchPlan(int num_experts, int top_k, int capacity) : top_k_(top_k), counts_(num_experts) {
  const size_t pairs = static_cast<size_t>(capacity) * top_k;
  pairs_.reserve(pairs);
  experts_.reserve(pairs);
  replicas_.reserve(pairs);
  newly_failed_.reserve(capacity);
}

void DispatchPlan::Count(const DispatchTable& table, std::span<const int32_t> experts, std::span<const float> weights,
                         std::span<uint8_t> failed) {
  const size_t rows = failed.size();
  BALLAST_CHECK(experts.size() == rows * top_k_ && weights.size() == experts.size()) << rows << " rows";
  newly_failed_.clear();
  std::fill(counts_.begin(), counts_.end(), 0);
  pairs_.resize(experts.size());
  experts_.resize(experts.size());
  replicas_.resize(experts.size());

  for (size_t row = 0; row < rows; ++row) {
    PlannedPair* const of_row = pairs_.data() + row * top_k_;
    for (int k = 0; k < top_k_; ++k) {
      const PlannedPair pair{.expert = experts[row * top_k_ + k], .weight = weights[row * top_k_ + k]};
      int at = k;
      for (; at > 0 && of_row[at - 1].expert > pair.expert; --at) of_row[at] = of_row[at - 1];
      of_row[at] = pair;
    }
    for (int k = 0; k < top_k_ && !failed[row]; ++k) {
      const int32_t e = of_row[k].expert;
      // Peers refuse such a message, and the view with it.
      const bool not_finite = !std::isfinite(of_row[k].weight);
      if (!not_finite && table.begin[e] != table.begin[e + 1]) continue;
      failed[row] = 1;
      newly_failed_.push_back({.row = static_cast<int32_t>(row), .expert = e, .not_finite = not_finite});
    }
    for (int k = 0; k < top_k_; ++k) {
      experts_[row * top_k_ + k] = failed[row] ? -1 : of_row[k].expert;
      if (!failed[row]) ++counts_[of_row[k].expert];
    }
  }
}

void DispatchPlan::Assign(const DispatchTable& table, const DispatchSource& source, int num_ranks,
                          std::span<int32_t> quotas) {
  tokens_to_.assign(num_ranks, 0);
  pairs_to_.assign(num_ranks, 0);
  last_row_.assign(num_ranks, -1);
  AssignReplicas(table, source, experts_, top_k_, quotas, replicas_);
  for (size_t i = 0; i < pairs_.size(); ++i) {
    if (experts_[i] < 0) continue;
    PlannedPair& pair = pairs_[i];
    BALLAST_CHECK(replicas_[i] >= 0) << "expert " << pair.expert << " has no replica";
    pair.rank = table.rank[replicas_[i]];
    const auto row = static_cast<int32_t>(i / top_k_);
    if (last_row_[pair.rank] != row) {
      last_row_[pair.rank] = row;
      ++tokens_to_[pair.rank];
    }
    pair.token_at_rank = tokens_to_[pair.rank] - 1;
    pair.pair_at_rank = pairs_to_[pair.rank]++;
  }
}

}  // namespace ballast
