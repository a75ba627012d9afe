#include "controller/planner/node_limited.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/planner/eplb.h"
#include "controller/planner/packs.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

double EighthPower(double x) {
  const double square = x * x;
  const double fourth = square * square;
  return fourth * fourth;
}

// The number of nodes when they are consecutive blocks of as many workers each, else 0.
int32_t EqualBlocks(const Topology& topology) {
  const auto workers = static_cast<int32_t>(topology.workers.size());
  std::vector<int32_t> seen;
  for (const TopologyWorker& w : topology.workers) {
    if (!seen.empty() && seen.back() == w.node) continue;
    if (std::find(seen.begin(), seen.end(), w.node) != seen.end()) return 0;
    seen.push_back(w.node);
  }
  const auto nodes = static_cast<int32_t>(seen.size());
  if (workers % nodes != 0) return 0;
  for (int32_t w = 0; w < workers; ++w) {
    if (topology.workers[w].node != seen[w / (workers / nodes)]) return 0;
  }
  return nodes;
}

bool EqualWeights(const DispatchTable& table) {
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      if (table.weight[r] == 0 || table.weight[r] != table.weight[table.begin[e]]) return false;
    }
  }
  return true;
}

Packs ToPacks(const DispatchTable& table, int32_t workers) {
  Packs packs(workers);
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) packs[table.rank[r]].push_back(e);
  }
  return packs;
}

}  // namespace

std::vector<int32_t> GroupsToNodes(std::span<const std::vector<double>> loads, int32_t nodes) {
  BALLAST_CHECK(!loads.empty() && nodes > 0 && loads[0].size() % nodes == 0) << loads.size() << " " << nodes;
  const size_t groups = loads[0].size();
  // In units of a node's mean, scenario by scenario.
  std::vector<std::vector<double>> scaled;
  std::vector<float> sum(groups);
  for (const std::vector<double>& load : loads) {
    const double total = std::accumulate(load.begin(), load.end(), 0.0);
    if (total <= 0) continue;
    scaled.push_back(load);
    for (size_t g = 0; g < groups; ++g) {
      scaled.back()[g] *= nodes / total;
      sum[g] += static_cast<float>(scaled.back()[g]);
    }
  }
  std::vector<int32_t> node = BalancedPacking(sum, nodes).pack;
  std::vector<std::vector<double>> filled(scaled.size(), std::vector<double>(nodes));
  for (size_t s = 0; s < scaled.size(); ++s) {
    for (size_t g = 0; g < groups; ++g) filled[s][node[g]] += scaled[s][g];
  }
  constexpr int kPasses = 64;
  // Gains smaller than this are rounding.
  constexpr double kLeastGain = 1e-12;
  bool better = true;
  for (int pass = 0; pass < kPasses && better; ++pass) {
    better = false;
    for (size_t g = 0; g < groups; ++g) {
      for (size_t h = g + 1; h < groups; ++h) {
        if (node[g] == node[h]) continue;
        double change = 0;
        for (size_t s = 0; s < scaled.size(); ++s) {
          const double moved = scaled[s][h] - scaled[s][g];
          const double at_g = filled[s][node[g]];
          const double at_h = filled[s][node[h]];
          change += EighthPower(at_g + moved) - EighthPower(at_g) + EighthPower(at_h - moved) - EighthPower(at_h);
        }
        if (change >= -kLeastGain) continue;
        for (size_t s = 0; s < scaled.size(); ++s) {
          const double moved = scaled[s][h] - scaled[s][g];
          filled[s][node[g]] += moved;
          filled[s][node[h]] -= moved;
        }
        std::swap(node[g], node[h]);
        better = true;
      }
    }
  }
  return node;
}

absl::StatusOr<std::vector<DispatchTable>> NodeLimitedPolicy::Place(const PlanRequest& request) const {
  const LoadMatrix& first = request.scenarios[0].load;
  const auto workers = static_cast<int32_t>(request.topology.workers.size());
  const int32_t nodes = EqualBlocks(request.topology);
  if (nodes == 0) {
    return absl::InvalidArgumentError("topology: nodes must be consecutive blocks of as many workers each");
  }
  if (groups_ < 1 || first.experts % groups_ != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("groups: ", groups_, "; must divide the ", first.experts, " experts"));
  }
  if (groups_ % nodes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("groups: ", groups_, "; the ", nodes, " nodes must divide them"));
  }
  const int32_t group_size = first.experts / groups_;
  const int32_t node_experts = first.experts / nodes;
  const int32_t node_workers = workers / nodes;

  // [layers][nodes][experts of the node]
  std::vector<std::vector<std::vector<int32_t>>> experts(first.layers);
  for (int32_t l = 0; l < first.layers; ++l) {
    std::vector<std::vector<double>> loads;
    for (const Scenario& s : request.scenarios) {
      loads.emplace_back(groups_);
      for (int32_t e = 0; e < first.experts; ++e) loads.back()[e / group_size] += s.load.layer(l)[e];
    }
    const std::vector<int32_t> node = GroupsToNodes(loads, nodes);
    experts[l].resize(nodes);
    for (int32_t e = 0; e < first.experts; ++e) experts[l][node[e / group_size]].push_back(e);
  }

  std::vector<Packs> packs(first.layers, Packs(workers));
  std::vector<bool> equal_split(first.layers, true);
  for (int32_t n = 0; n < nodes; ++n) {
    PlanRequest part;
    part.topology = request.topology;
    part.topology.workers.assign(request.topology.workers.begin() + n * node_workers,
                                 request.topology.workers.begin() + (n + 1) * node_workers);
    part.slots_per_layer = request.slots_per_layer;
    part.replicas_per_worker = request.replicas_per_worker;
    for (const Scenario& s : request.scenarios) {
      part.scenarios.push_back({s.name, s.weight, LoadMatrix(first.layers, node_experts)});
      for (int32_t l = 0; l < first.layers; ++l) {
        for (int32_t i = 0; i < node_experts; ++i) {
          part.scenarios.back().load.layer(l)[i] = s.load.layer(l)[experts[l][n][i]];
        }
      }
    }
    BALLAST_ASSIGN_OR_RETURN(const std::vector<DispatchTable> tables, inner_.Place(part));
    for (int32_t l = 0; l < first.layers; ++l) {
      equal_split[l] = equal_split[l] && EqualWeights(tables[l]);
      const Packs placed = ToPacks(tables[l], node_workers);
      for (int32_t w = 0; w < node_workers; ++w) {
        for (const int32_t i : placed[w]) packs[l][n * node_workers + w].push_back(experts[l][n][i]);
      }
    }
  }

  std::vector<DispatchTable> current;
  if (request.current) current = Onto(*request.current, request.topology);
  std::vector<DispatchTable> out;
  for (int32_t l = 0; l < first.layers; ++l) {
    const bool alike = std::all_of(packs[l].begin(), packs[l].end(),
                                   [&](const auto& pack) { return pack.size() == packs[l][0].size(); });
    if (!current.empty() && alike) packs[l] = Relabel(packs[l], current[l], node_workers);
    out.push_back(ToTable(packs[l], first.experts));
    if (equal_split[l]) out.back().weight.assign(out.back().weight.size(), 1);
  }
  return out;
}

}  // namespace ballast
