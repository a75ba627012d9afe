#include "controller/planner/eplb.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {

Packing BalancedPacking(std::span<const float> weights, int32_t packs) {
  const auto items = static_cast<int32_t>(weights.size());
  BALLAST_CHECK(packs > 0 && items % packs == 0) << items << " items into " << packs << " packs";
  const int32_t each = items / packs;
  Packing out{std::vector<int32_t>(items), std::vector<int32_t>(items)};
  if (each == 1) {
    std::iota(out.pack.begin(), out.pack.end(), 0);
    return out;
  }
  std::vector<int32_t> order(items);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
  // A heap of packs with room, the lightest and then the lowest on top.
  std::vector<float> weight(packs);
  std::vector<int32_t> filled(packs);
  std::vector<int32_t> open(packs);
  std::iota(open.begin(), open.end(), 0);
  const auto after = [&](int32_t a, int32_t b) { return weight[a] != weight[b] ? weight[a] > weight[b] : a > b; };
  for (const int32_t item : order) {
    std::pop_heap(open.begin(), open.end(), after);
    const int32_t pack = open.back();
    out.pack[item] = pack;
    out.rank_in_pack[item] = filled[pack]++;
    weight[pack] += weights[item];
    if (filled[pack] == each) {
      open.pop_back();
    } else {
      std::push_heap(open.begin(), open.end(), after);
    }
  }
  return out;
}

Replication ReplicateExperts(std::span<const float> weights, int32_t replicas) {
  const auto experts = static_cast<int32_t>(weights.size());
  BALLAST_CHECK(replicas >= experts) << replicas << " replicas of " << experts << " experts";
  Replication out;
  out.expert.resize(experts);
  std::iota(out.expert.begin(), out.expert.end(), 0);
  out.rank.assign(experts, 0);
  out.count.assign(experts, 1);
  std::vector<float> part(weights.begin(), weights.end());
  std::vector<int32_t> heap = out.expert;
  const auto after = [&](int32_t a, int32_t b) { return part[a] != part[b] ? part[a] < part[b] : a > b; };
  std::make_heap(heap.begin(), heap.end(), after);
  for (int32_t i = experts; i < replicas; ++i) {
    std::pop_heap(heap.begin(), heap.end(), after);
    const int32_t e = heap.back();
    out.expert.push_back(e);
    out.rank.push_back(out.count[e]++);
    part[e] = weights[e] / static_cast<float>(out.count[e]);
    std::push_heap(heap.begin(), heap.end(), after);
  }
  return out;
}

std::vector<int32_t> RebalanceExperts(std::span<const float> weights, int32_t replicas, int32_t groups, int32_t nodes,
                                      int32_t gpus, std::vector<int32_t>* rank) {
  if (groups % nodes != 0) groups = nodes = 1;
  const auto experts = static_cast<int32_t>(weights.size());
  BALLAST_CHECK(experts % groups == 0 && gpus % nodes == 0 && replicas % gpus == 0 && replicas >= experts)
      << experts << " experts, " << groups << " groups, " << replicas << " replicas, " << gpus << " GPUs, " << nodes
      << " nodes";
  const int32_t group_size = experts / groups;
  const int32_t groups_per_node = groups / nodes;
  std::vector<float> group_weight(groups);
  for (int32_t e = 0; e < experts; ++e) group_weight[e / group_size] += weights[e];
  const Packing node_of_group = BalancedPacking(group_weight, nodes);
  // Experts in the order of nodes.
  std::vector<int32_t> in_order(experts);
  for (int32_t e = 0; e < experts; ++e) {
    const int32_t g = e / group_size;
    in_order[(node_of_group.pack[g] * groups_per_node + node_of_group.rank_in_pack[g]) * group_size + e % group_size] =
        e;
  }
  const int32_t node_experts = experts / nodes;
  const int32_t node_replicas = replicas / nodes;
  const int32_t node_gpus = gpus / nodes;
  std::vector<int32_t> physical_to_logical(replicas);
  if (rank != nullptr) rank->resize(replicas);
  std::vector<float> node_weight(node_experts);
  for (int32_t n = 0; n < nodes; ++n) {
    for (int32_t i = 0; i < node_experts; ++i) node_weight[i] = weights[in_order[n * node_experts + i]];
    const Replication replication = ReplicateExperts(node_weight, node_replicas);
    std::vector<float> part(node_replicas);
    for (int32_t p = 0; p < node_replicas; ++p) {
      const int32_t e = replication.expert[p];
      part[p] = node_weight[e] / static_cast<float>(replication.count[e]);
    }
    const Packing packing = BalancedPacking(part, node_gpus);
    for (int32_t p = 0; p < node_replicas; ++p) {
      const int32_t slot = packing.pack[p] * (node_replicas / node_gpus) + packing.rank_in_pack[p];
      physical_to_logical[n * node_replicas + slot] = in_order[n * node_experts + replication.expert[p]];
      if (rank != nullptr) (*rank)[n * node_replicas + slot] = replication.rank[p];
    }
  }
  return physical_to_logical;
}

namespace {

// `tokens` may be a blend, which does not count whole tokens as published; only proportions matter.
Packs DistinctPacks(std::span<const double> tokens, int32_t groups, int32_t nodes, int32_t workers, int32_t slots) {
  const std::vector<float> weights(tokens.begin(), tokens.end());
  const std::vector<int32_t> physical = RebalanceExperts(weights, slots * workers, groups, nodes, workers);
  Packs packs(workers);
  for (int32_t p = 0; p < slots * workers; ++p) packs[p / slots].push_back(physical[p]);
  MakeDistinct(tokens, packs);
  return packs;
}

}  // namespace

Packs EplbPacks(std::span<const double> tokens, int32_t workers, int32_t slots) {
  return DistinctPacks(tokens, 1, 1, workers, slots);
}

absl::StatusOr<std::vector<DispatchTable>> EplbPolicy::Place(const PlanRequest& request) const {
  BALLAST_ASSIGN_OR_RETURN(const int32_t slots, SlotsPerLayer(request));
  const auto workers = static_cast<int32_t>(request.topology.workers.size());
  const LoadMatrix blend = Blend(request.scenarios);
  if (groups_ < 1 || blend.experts % groups_ != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("groups: ", groups_, "; must divide the ", blend.experts, " experts"));
  }
  // Nodes of equal size in contiguous blocks, or the topology counts as one node.
  int32_t nodes = 1;
  for (int32_t w = 1; w < workers; ++w) {
    nodes += request.topology.workers[w].node != request.topology.workers[w - 1].node;
  }
  for (int32_t w = 0; w < workers; ++w) {
    const int32_t first = workers % nodes == 0 ? w / (workers / nodes) * (workers / nodes) : 0;
    if (request.topology.workers[w].node != request.topology.workers[first].node) nodes = 1;
  }
  std::vector<DispatchTable> current;
  if (request.current) current = Onto(*request.current, request.topology);
  const bool hierarchical = nodes > 1 && groups_ % nodes == 0;
  const int32_t block = hierarchical ? workers / nodes : workers;
  std::vector<DispatchTable> layers;
  for (int32_t l = 0; l < blend.layers; ++l) {
    Packs packs = DistinctPacks(blend.layer(l), groups_, nodes, workers, slots);
    if (!current.empty()) packs = Relabel(packs, current[l], block);
    layers.push_back(ToTable(packs, blend.experts));
    if (split_ == Split::kEqual) layers.back().weight.assign(layers.back().weight.size(), 1);
  }
  return layers;
}

}  // namespace ballast
