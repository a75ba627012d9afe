#include "kernels/cuda/quotas.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/quota_limits.h"
#include "kernels/cuda/status.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

constexpr int kMaxSpeed = 1024;

absl::Status Field(const char* name, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

absl::Status Check(std::span<const int32_t> begin, std::span<const int32_t> rank, int num_ranks,
                   std::span<const int32_t> speed) {
  const int experts = static_cast<int>(begin.size()) - 1, replicas = static_cast<int>(rank.size());
  if (experts < 1 || experts > kMaxQuotaExperts) {
    return Field("experts", experts, absl::StrCat("1 to ", kMaxQuotaExperts));
  }
  if (replicas < 1 || replicas > kMaxQuotaReplicas) {
    return Field("replicas", replicas, absl::StrCat("1 to ", kMaxQuotaReplicas));
  }
  if (num_ranks < 1 || num_ranks > kMaxQuotaRanks) {
    return Field("num_ranks", num_ranks, absl::StrCat("1 to ", kMaxQuotaRanks));
  }
  if (begin[0] != 0) return Field("begin[0]", begin[0], "0");
  if (begin[experts] != replicas) return Field("begin[experts]", begin[experts], absl::StrCat("replicas, ", replicas));
  for (int e = 0; e < experts; ++e) {
    const int copies = begin[e + 1] - begin[e];
    if (copies < 0 || copies > kMaxQuotaCopies) {
      return Field(absl::StrCat("copies of expert ", e).c_str(), copies, absl::StrCat("0 to ", kMaxQuotaCopies));
    }
  }
  for (int r = 0; r < replicas; ++r) {
    if (rank[r] < 0 || rank[r] >= num_ranks) {
      return Field(absl::StrCat("rank[", r, "]").c_str(), rank[r], absl::StrCat("0 to ", num_ranks - 1));
    }
  }
  if (!speed.empty() && static_cast<int>(speed.size()) != num_ranks) {
    return Field("size of speed", static_cast<int64_t>(speed.size()), absl::StrCat("num_ranks, ", num_ranks));
  }
  for (size_t d = 0; d < speed.size(); ++d) {
    if (speed[d] < 1 || speed[d] > kMaxSpeed) {
      return Field(absl::StrCat("speed[", d, "]").c_str(), speed[d], absl::StrCat("1 to ", kMaxSpeed));
    }
  }
  return absl::OkStatus();
}

// Appends lists [ranks] one after the other; returns where their beginnings lie, then where they lie.
std::pair<int, int> AppendLists(const std::vector<std::vector<int32_t>>& lists, std::vector<int32_t>& table) {
  const int begin = static_cast<int>(table.size());
  int32_t at = 0;
  for (const std::vector<int32_t>& list : lists) {
    table.push_back(at);
    at += static_cast<int32_t>(list.size());
  }
  table.push_back(at);
  const int entries = static_cast<int>(table.size());
  for (const std::vector<int32_t>& list : lists) table.insert(table.end(), list.begin(), list.end());
  return {begin, entries};
}

int Append(const std::vector<int32_t>& values, std::vector<int32_t>& table) {
  const int at = static_cast<int>(table.size());
  table.insert(table.end(), values.begin(), values.end());
  return at;
}

}  // namespace

absl::StatusOr<CudaStepQuotas> CudaStepQuotas::Create(std::span<const int32_t> begin, std::span<const int32_t> rank,
                                                      int num_ranks, std::span<const int32_t> speed) {
  if (absl::Status status = Check(begin, rank, num_ranks, speed); !status.ok()) return status;
  const int experts = static_cast<int>(begin.size()) - 1;
  std::vector<int32_t> singles, single_expert;
  std::vector<std::vector<int32_t>> rank_single_expert(num_ranks), rank_replica(num_ranks), replica_ranks(num_ranks),
      edges(num_ranks), levels;
  // An expert's level is above those of the experts before it that share a rank with it: within a level their order
  // does not matter.
  std::vector<int> rank_level(num_ranks);
  for (int e = 0; e < experts; ++e) {
    const int first = begin[e], last = begin[e + 1];
    if (last - first == 1) {
      singles.push_back(first);
      single_expert.push_back(e);
      rank_single_expert[rank[first]].push_back(e);
    }
    if (last - first < 2) continue;
    int level = 0;
    uint32_t ranks = 0;
    for (int r = first; r < last; ++r) {
      level = std::max(level, rank_level[rank[r]]);
      ranks |= uint32_t{1} << rank[r];
    }
    if (level == static_cast<int>(levels.size())) levels.emplace_back();
    levels[level].push_back(e);
    for (int r = first; r < last; ++r) {
      rank_level[rank[r]] = level + 1;
      rank_replica[rank[r]].push_back(r);
      replica_ranks[rank[r]].push_back(static_cast<int32_t>(ranks));
      for (int other = first; other < last; ++other) {
        if (rank[other] != rank[r]) edges[rank[r]].push_back(internal::PackEdge(r, other, rank[other]));
      }
    }
  }
  CudaStepQuotas quotas;
  std::vector<int32_t>& table = quotas.table_;
  internal::QuotaKernelArgs& args = quotas.args_;
  args.at.begin = Append({begin.begin(), begin.end()}, table);
  args.at.rank = Append({rank.begin(), rank.end()}, table);
  args.at.speed = Append(
      speed.empty() ? std::vector<int32_t>(num_ranks, 1) : std::vector<int32_t>(speed.begin(), speed.end()), table);
  args.at.singles = Append(singles, table);
  args.at.single_expert = Append(single_expert, table);
  std::tie(args.at.rank_singles, args.at.rank_single_expert) = AppendLists(rank_single_expert, table);
  std::tie(args.at.levels, args.at.shared) = AppendLists(levels, table);
  std::tie(args.at.rank_replicas, args.at.rank_replica) = AppendLists(rank_replica, table);
  std::tie(std::ignore, args.at.replica_ranks) = AppendLists(replica_ranks, table);
  std::tie(args.at.rank_edges, args.at.edges) = AppendLists(edges, table);
  args.at.words = static_cast<int>(table.size());
  args.experts = experts;
  args.replicas = static_cast<int>(rank.size());
  args.ranks = num_ranks;
  args.num_singles = static_cast<int>(singles.size());
  args.num_levels = static_cast<int>(levels.size());
  for (const std::vector<int32_t>& level : levels) args.num_shared += static_cast<int>(level.size());
  args.unit = speed.empty() ? 1 : *std::max_element(speed.begin(), speed.end());
  BALLAST_CHECK(args.at.words == QuotaTableWords(begin, rank, num_ranks)) << args.at.words << " words";
  const size_t bytes = QuotaSharedBytes(args.at.words, args.experts, args.replicas);
  if (bytes > kMaxQuotaSharedBytes) {
    return Field("bytes of shared memory for the table", static_cast<int64_t>(bytes),
                 absl::StrCat("at most ", kMaxQuotaSharedBytes, ": fewer copies of the same experts"));
  }
  return quotas;
}

absl::Status CudaStepQuotas::Run(const StepQuotasArgs& step, cudaStream_t stream) const {
  if (step.sources < 1 || step.sources > args_.ranks) {
    return Field("sources", step.sources, absl::StrCat("1 to num_ranks, ", args_.ranks));
  }
  internal::QuotaKernelArgs args = args_;
  args.table = step.table;
  args.sources = step.sources;
  args.counts = step.counts;
  args.quotas = step.quotas;
  args.bound = step.bound;
  return CudaStatus(internal::LaunchQuotas(args, stream), "the quota kernel");
}

}  // namespace ballast
