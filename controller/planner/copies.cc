#include "controller/planner/copies.h"

#include <algorithm>
#include <vector>

namespace ballast {

CopyCount CountCopies(const DispatchTable& layer, const Topology& topology, int32_t top_k,
                      std::span<const int32_t> experts, std::span<const int64_t> samples) {
  const auto workers = static_cast<int32_t>(topology.workers.size());
  std::vector<int32_t> nodes;
  for (const TopologyWorker& w : topology.workers) nodes.push_back(w.node);
  std::vector<std::vector<int32_t>> routes(workers);
  for (size_t t = 0; t < samples.size(); ++t) {
    auto& home = routes[samples[t] % workers];
    for (int32_t i = 0; i < top_k; ++i) {
      const int32_t e = experts[t * top_k + i];
      home.push_back(e < layer.num_experts() ? e : -1);
    }
  }
  CopyCount count;
  std::vector<int32_t> quotas(layer.num_replicas());
  std::vector<int32_t> visited;
  for (int32_t home = 0; home < workers; ++home) {
    std::vector<int32_t> counts(layer.num_experts());
    for (const int32_t e : routes[home]) {
      if (e >= 0) ++counts[e];
    }
    SolveQuotas(layer, counts, static_cast<uint32_t>(home), quotas);
    std::vector<int32_t> chosen(routes[home].size());
    AssignReplicas(layer, {home, nodes}, routes[home], top_k, quotas, chosen);
    for (size_t row = 0; row < chosen.size(); row += top_k) {
      visited.clear();
      for (int32_t i = 0; i < top_k; ++i) {
        if (chosen[row + i] >= 0) visited.push_back(layer.rank[chosen[row + i]]);
      }
      std::sort(visited.begin(), visited.end());
      visited.erase(std::unique(visited.begin(), visited.end()), visited.end());
      ++count.tokens;
      for (const int32_t w : visited) {
        count.copies += w != home;
        count.cross_node += nodes[w] != nodes[home];
      }
    }
  }
  return count;
}

}  // namespace ballast
