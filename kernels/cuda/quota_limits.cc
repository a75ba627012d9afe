#include "kernels/cuda/quota_limits.h"

#include <algorithm>
#include <vector>

namespace ballast {

int64_t QuotaTableWords(std::span<const int32_t> begin, std::span<const int32_t> rank, int num_ranks) {
  const auto experts = static_cast<int64_t>(begin.size()) - 1, replicas = static_cast<int64_t>(rank.size());
  int64_t singles = 0, shared = 0, shared_replicas = 0, edges = 0, levels = 0;
  std::vector<int64_t> rank_level(num_ranks);
  for (int64_t e = 0; e < experts; ++e) {
    const auto of_expert = rank.subspan(begin[e], begin[e + 1] - begin[e]);
    if (of_expert.size() == 1) ++singles;
    if (of_expert.size() < 2) continue;
    ++shared;
    shared_replicas += static_cast<int64_t>(of_expert.size());
    int64_t level = 0;
    for (const int32_t r : of_expert) {
      level = std::max(level, rank_level[r]);
      edges += std::ranges::count_if(of_expert, [r](int32_t other) { return other != r; });
    }
    for (const int32_t r : of_expert) rank_level[r] = level + 1;
    levels = std::max(levels, level + 1);
  }
  // Experts' beginnings, ranks, speeds; single replicas and their experts, twice, once by rank; levels; replicas of
  // shared experts by rank, twice; edges by rank.
  return experts + 1 + replicas + num_ranks + 3 * singles + levels + 1 + shared + 2 * shared_replicas + edges +
         4 * (int64_t{num_ranks} + 1);
}

bool QuotasFit(std::span<const int32_t> begin, std::span<const int32_t> rank, int num_ranks) {
  const auto experts = static_cast<int>(begin.size()) - 1, replicas = static_cast<int>(rank.size());
  if (experts > kMaxQuotaExperts || replicas > kMaxQuotaReplicas || num_ranks > kMaxQuotaRanks) return false;
  for (int e = 0; e < experts; ++e) {
    if (begin[e + 1] - begin[e] > kMaxQuotaCopies) return false;
  }
  return QuotaSharedBytes(QuotaTableWords(begin, rank, num_ranks), experts, replicas) <= kMaxQuotaSharedBytes;
}

}  // namespace ballast
