#include "proto/placement/quotas.h"

#include "proto/base/check.h"

namespace ballast {
namespace {

// How near a replica is to a token of the source, best first.
enum class Nearness { kVisited, kSelf, kNode, kHome, kFar };

}  // namespace

DispatchTable MakeDispatchTable(const LayerReplicas& layer, std::span<const int32_t> rank_of_worker) {
  DispatchTable table;
  table.begin.reserve(layer.begin.size());
  table.begin.push_back(0);
  for (size_t e = 0; e + 1 < layer.begin.size(); ++e) {
    for (int32_t i = layer.begin[e]; i < layer.begin[e + 1]; ++i) {
      const Replica& r = layer.replicas[i];
      BALLAST_CHECK(static_cast<size_t>(r.worker) < rank_of_worker.size()) << "worker " << r.worker;
      if (rank_of_worker[r.worker] < 0) continue;
      table.rank.push_back(rank_of_worker[r.worker]);
      table.weight.push_back(r.weight);
    }
    table.begin.push_back(static_cast<int32_t>(table.rank.size()));
  }
  return table;
}

void SolveQuotas(const DispatchTable& table, std::span<const int32_t> counts, uint32_t rotation,
                 std::span<int32_t> quotas) {
  BALLAST_CHECK(counts.size() + 1 == table.begin.size() && quotas.size() == table.rank.size())
      << counts.size() << " counts, " << quotas.size() << " quotas";
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    const int32_t first = table.begin[e];
    const int32_t last = table.begin[e + 1];
    if (first == last) continue;
    const auto count = static_cast<uint64_t>(counts[e]);
    if (last - first == 1 || count == 0) {
      for (int32_t r = first; r < last; ++r) quotas[r] = 0;
      quotas[first] = counts[e];
      continue;
    }
    uint64_t sum = 0;
    for (int32_t r = first; r < last; ++r) sum += table.weight[r];
    // The threshold as a fraction of `sum`; experts start at places of their own, so that one source with a token for
    // each of many experts does not round all of them towards the low ranks.
    const uint32_t phase = rotation * 0x9E3779B9u + static_cast<uint32_t>(e) * 0x85EBCA6Bu;
    const uint64_t offset = (phase * sum) >> 32;
    uint64_t weight = 0;
    uint64_t given = 0;
    for (int32_t r = first; r < last; ++r) {
      weight += table.weight[r];
      const uint64_t upto = (weight * count + offset) / sum;
      quotas[r] = static_cast<int32_t>(upto - given);
      given = upto;
    }
  }
}

void AssignReplicas(const DispatchTable& table, const DispatchSource& source, std::span<const int32_t> experts,
                    int32_t top_k, std::span<int32_t> quotas, std::span<int32_t> replica_of_pair) {
  BALLAST_CHECK(top_k > 0 && experts.size() % top_k == 0 && replica_of_pair.size() == experts.size() &&
                quotas.size() == table.rank.size())
      << experts.size() << " pairs by " << top_k << ", " << replica_of_pair.size() << " places, " << quotas.size()
      << " quotas";
  BALLAST_CHECK(source.home_group.empty() || source.home_group.size() * top_k == experts.size())
      << source.home_group.size() << " home groups for " << experts.size() << " pairs by " << top_k;
  const size_t pairs = experts.size();
  const auto take = [&](size_t pair, int32_t replica) {
    replica_of_pair[pair] = replica;
    --quotas[replica];
  };
  // No choice: one replica, or all quota on one.
  size_t open = 0;
  for (size_t pair = 0; pair < pairs; ++pair) {
    replica_of_pair[pair] = -1;
    const int32_t e = experts[pair];
    if (e < 0 || table.begin[e] == table.begin[e + 1]) continue;
    if (table.begin[e] + 1 == table.begin[e + 1]) {
      take(pair, table.begin[e]);
    } else {
      ++open;
    }
  }
  const auto node = [&](int32_t rank) { return source.node_of_rank.empty() ? 0 : source.node_of_rank[rank]; };
  const int32_t own_node = node(source.rank);
  // Three sweeps, each content with less: a pair that can ride along with its token takes its quota before one that
  // cannot, and what a sweep settles lets more pairs ride along in the next.
  for (const Nearness enough : {Nearness::kVisited, Nearness::kSelf, Nearness::kFar}) {
    for (size_t row = 0; row < pairs && open > 0; row += top_k) {
      const int32_t group = source.home_group.empty() ? -1 : source.home_group[row / top_k];
      const uint8_t* const is_home =
          group < 0 ? nullptr : source.is_home.data() + static_cast<size_t>(group) * source.num_ranks;
      for (size_t pair = row; pair < row + top_k; ++pair) {
        const int32_t e = experts[pair];
        if (e < 0 || replica_of_pair[pair] >= 0) continue;
        int32_t best = -1;
        Nearness best_nearness = Nearness::kFar;
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
          if (quotas[r] == 0) continue;
          const int32_t rank = table.rank[r];
          Nearness nearness = Nearness::kFar;
          for (size_t other = row; other < row + top_k && nearness != Nearness::kVisited; ++other) {
            if (replica_of_pair[other] >= 0 && table.rank[replica_of_pair[other]] == rank)
              nearness = Nearness::kVisited;
          }
          if (nearness != Nearness::kVisited) {
            if (rank == source.rank) {
              nearness = Nearness::kSelf;
            } else if (node(rank) == own_node) {
              nearness = Nearness::kNode;
            } else if (is_home != nullptr && is_home[rank] != 0) {
              nearness = Nearness::kHome;
            }
          }
          if (best < 0 || nearness < best_nearness || (nearness == best_nearness && quotas[r] > quotas[best])) {
            best = r;
            best_nearness = nearness;
          }
        }
        if (best >= 0 && best_nearness <= enough) {
          take(pair, best);
          --open;
        }
      }
    }
  }
}

}  // namespace ballast
