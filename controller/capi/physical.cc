#include "controller/capi/physical.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "controller/planner/load.h"
#include "controller/planner/node_limited.h"
#include "controller/planner/packs.h"
#include "controller/planner/planner.h"
#include "proto/base/status_macros.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

constexpr int32_t kMostOfAny = 1 << 20;
constexpr int64_t kMostCells = 1 << 26;
constexpr double kMostTokens = 1e18;
constexpr int64_t kDefaultProposals = 200'000;
constexpr int64_t kMostProposals = 1'000'000'000;

absl::Status InvalidSize(std::string_view field, int64_t value, std::string_view limit) {
  return absl::InvalidArgumentError(absl::StrCat(absl::string_view(field.data(), field.size()), ": ", value, "; ",
                                                 absl::string_view(limit.data(), limit.size())));
}

absl::Status CheckSize(std::string_view field, int32_t value) {
  if (value >= 1 && value <= kMostOfAny) return absl::OkStatus();
  return InvalidSize(field, value, "must lie in 1 .. 1048576");
}

absl::Status CheckWeight(const PhysicalShape& shape, std::span<const double> weight) {
  for (size_t i = 0; i < weight.size(); ++i) {
    if (weight[i] >= 0 && weight[i] <= kMostTokens) continue;  // false for NaN
    return absl::InvalidArgumentError(absl::StrCat("weight[", i / shape.num_experts, "][", i % shape.num_experts,
                                                   "]: ", weight[i], "; must be finite, at least 0 and at most 1e18"));
  }
  return absl::OkStatus();
}

absl::Status CheckMap(std::string_view field, const PhysicalShape& shape, std::span<const int64_t> map) {
  for (size_t i = 0; i < map.size(); ++i) {
    if (map[i] >= -1 && map[i] < shape.num_experts) continue;
    return absl::InvalidArgumentError(absl::StrCat(absl::string_view(field.data(), field.size()), "[",
                                                   i / shape.num_replicas, "][", i % shape.num_replicas, "]: ", map[i],
                                                   "; must lie in -1 .. ", shape.num_experts - 1));
  }
  return absl::OkStatus();
}

// A physical map as the placement in force; what a GPU holds twice counts once.
Placement ToPlacement(const PhysicalShape& shape, const Topology& topology, std::span<const int64_t> map) {
  Placement out;
  out.num_layers = shape.num_layers;
  out.num_experts = shape.num_experts;
  for (const TopologyWorker& w : topology.workers) out.workers.push_back(w.name);
  std::vector<int64_t> seen(shape.num_experts, -1);  // the last (layer, GPU) that held the expert
  for (size_t i = 0; i < map.size(); ++i) {
    if (map[i] < 0) continue;
    const auto layer = static_cast<int32_t>(i / shape.num_replicas);
    const auto worker = static_cast<int32_t>(i % shape.num_replicas) / shape.slots();
    const int64_t holder = int64_t{layer} * shape.num_gpus + worker;
    if (std::exchange(seen[map[i]], holder) == holder) continue;
    const auto slot = static_cast<int32_t>(i % shape.slots());
    out.replicas.push_back({{layer, static_cast<int32_t>(map[i])}, worker, layer * shape.slots() + slot, 1});
  }
  out.Sort();
  return out;
}

// Fills every pack up to `slots`: with what it lacks of its node's experts, those with most tokens a replica first, and
// when it lacks none, with second copies of its own, the same on every worker that holds all.
void FillPacks(std::span<const double> tokens, int32_t slots, int32_t block, Packs& packs) {
  std::vector<int32_t> count(tokens.size());
  for (const auto& pack : packs) {
    for (const int32_t e : pack) ++count[e];
  }
  const auto is_short = [&](const auto& pack) { return static_cast<int32_t>(pack.size()) < slots; };
  for (auto node = packs.begin(); node != packs.end(); node += block) {
    if (std::none_of(node, node + block, is_short)) continue;
    std::vector<bool> of_node(tokens.size());
    for (auto pack = node; pack != node + block; ++pack) {
      for (const int32_t e : *pack) of_node[e] = true;
    }
    for (auto pack = node; pack != node + block; ++pack) {
      std::vector<int32_t> here(tokens.size());
      for (const int32_t e : *pack) ++here[e];
      while (is_short(*pack)) {
        int32_t missing = -1;
        int32_t again = -1;
        for (int32_t e = 0; e < static_cast<int32_t>(tokens.size()); ++e) {
          if (!of_node[e]) continue;
          if (here[e] == 0) {
            if (missing < 0 || tokens[e] * count[missing] > tokens[missing] * count[e]) missing = e;
          } else if (again < 0 || tokens[e] * here[again] > tokens[again] * here[e]) {
            again = e;
          }
        }
        const int32_t e = missing >= 0 ? missing : again;
        pack->push_back(e);
        ++here[e];
        ++count[e];
      }
    }
  }
}

// What EPLB makes of one layer.
std::vector<int32_t> EplbMap(const PhysicalRequest& request, int32_t layer, std::vector<int32_t>* rank) {
  const PhysicalShape& shape = request.shape;
  const auto tokens = request.weight.subspan(static_cast<size_t>(layer) * shape.num_experts, shape.num_experts);
  const std::vector<float> narrow(tokens.begin(), tokens.end());
  return RebalanceExperts(narrow, shape.num_replicas, request.num_groups, request.num_nodes, shape.num_gpus, rank);
}

// Tokens on the busiest GPU of one layer, every expert's split equally over its slots.
template <typename Map>
double BusiestOf(const PhysicalShape& shape, std::span<const double> tokens, const Map& map) {
  std::vector<double> count(shape.num_experts);
  for (const auto e : map) ++count[e];
  double busiest = 0;
  for (int32_t g = 0; g < shape.num_gpus; ++g) {
    double load = 0;
    for (int32_t s = g * shape.slots(); s < (g + 1) * shape.slots(); ++s) load += tokens[map[s]] / count[map[s]];
    busiest = std::max(busiest, load);
  }
  return busiest;
}

void PlaceEplb(const PhysicalRequest& request, PhysicalPlan& plan) {
  for (int32_t l = 0; l < request.shape.num_layers; ++l) {
    std::vector<int32_t> rank;
    const std::vector<int32_t> physical = EplbMap(request, l, &rank);
    plan.phy2log.insert(plan.phy2log.end(), physical.begin(), physical.end());
    plan.rank.insert(plan.rank.end(), rank.begin(), rank.end());
  }
}

absl::Status PlaceCostAware(const PhysicalRequest& request, bool by_node, PhysicalPlan& plan) {
  const PhysicalShape& shape = request.shape;
  PlanRequest made;
  made.scenarios = {{"load", 1, LoadMatrix(shape.num_layers, shape.num_experts)}};
  made.scenarios[0].load.tokens.assign(request.weight.begin(), request.weight.end());
  // Without groups a plan may still prefer replicas on distinct nodes.
  const int32_t nodes = shape.num_gpus % request.num_nodes == 0 ? request.num_nodes : 1;
  made.topology = UniformTopology(shape.num_gpus, nodes, shape.num_layers * shape.slots());
  made.slots_per_layer = shape.slots();
  if (!request.previous.empty()) made.current = ToPlacement(shape, made.topology, request.previous);
  const CostAwarePolicy policy(static_cast<int32_t>(request.proposals == 0 ? kDefaultProposals : request.proposals),
                               request.split == PhysicalRequest::Split::kEqual ? CostAwarePolicy::Split::kEqual
                                                                               : CostAwarePolicy::Split::kSolved);
  const NodeLimitedPolicy node_limited(policy, request.num_groups);
  const PlannerPolicy& chosen = by_node ? static_cast<const PlannerPolicy&>(node_limited) : policy;
  BALLAST_ASSIGN_OR_RETURN(const std::vector<DispatchTable> tables, chosen.Place(made));
  const int32_t block = by_node ? shape.num_gpus / request.num_nodes : shape.num_gpus;
  // Weights of 0 are still to be solved, and what is not on its slot yet has no share.
  const bool shares = request.split == PhysicalRequest::Split::kShares && request.previous.empty() &&
                      std::all_of(tables.begin(), tables.end(), [&](const DispatchTable& table) {
                        return table.num_replicas() == shape.num_replicas &&
                               std::find(table.weight.begin(), table.weight.end(), 0u) == table.weight.end();
                      });
  if (shares) plan.shares.resize(static_cast<size_t>(shape.num_layers) * shape.num_replicas);
  std::vector<size_t> next(shape.num_gpus);
  for (int32_t l = 0; l < shape.num_layers; ++l) {
    if (shares) {
      const size_t first = plan.phy2log.size();
      plan.phy2log.resize(first + shape.num_replicas);
      for (int32_t g = 0; g < shape.num_gpus; ++g) next[g] = first + static_cast<size_t>(g) * shape.slots();
      for (int32_t e = 0; e < shape.num_experts; ++e) {
        double sum = 0;
        for (int32_t r = tables[l].begin[e]; r < tables[l].begin[e + 1]; ++r) sum += tables[l].weight[r];
        for (int32_t r = tables[l].begin[e]; r < tables[l].begin[e + 1]; ++r) {
          const size_t p = next[tables[l].rank[r]]++;
          plan.phy2log[p] = e;
          plan.shares[p] = tables[l].weight[r] / sum;
        }
      }
      continue;
    }
    Packs packs(shape.num_gpus);
    for (auto& pack : packs) pack.reserve(shape.slots());
    for (int32_t e = 0; e < shape.num_experts; ++e) {
      for (int32_t r = tables[l].begin[e]; r < tables[l].begin[e + 1]; ++r) packs[tables[l].rank[r]].push_back(e);
    }
    FillPacks(made.scenarios[0].load.layer(l), shape.slots(), block, packs);
    std::vector<int32_t> map;
    for (const auto& pack : packs) map.insert(map.end(), pack.begin(), pack.end());
    if (request.split == PhysicalRequest::Split::kEqual) {
      // Twice on a GPU is a larger share: where few slots are to spare EPLB's packing can be the better one by it.
      constexpr double kRounding = 1e-9;
      const auto tokens = made.scenarios[0].load.layer(l);
      std::vector<int32_t> eplb = EplbMap(request, l, nullptr);
      if (BusiestOf(shape, tokens, eplb) < BusiestOf(shape, tokens, map) * (1 - kRounding)) map = std::move(eplb);
    }
    plan.phy2log.insert(plan.phy2log.end(), map.begin(), map.end());
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const PhysicalShape& shape) {
  BALLAST_RETURN_IF_ERROR(CheckSize("num_layers", shape.num_layers));
  BALLAST_RETURN_IF_ERROR(CheckSize("num_experts", shape.num_experts));
  BALLAST_RETURN_IF_ERROR(CheckSize("num_replicas", shape.num_replicas));
  BALLAST_RETURN_IF_ERROR(CheckSize("num_gpus", shape.num_gpus));
  for (const auto& [field, value] :
       {std::pair{"num_experts", shape.num_experts}, {"num_replicas", shape.num_replicas}}) {
    if (int64_t{shape.num_layers} * value > kMostCells) {
      return InvalidSize(field, value, absl::StrCat("in ", shape.num_layers, " layers are more than 67108864 in all"));
    }
  }
  if (shape.num_replicas % shape.num_gpus != 0) {
    return InvalidSize("num_replicas", shape.num_replicas,
                       absl::StrCat("must be a multiple of num_gpus, ", shape.num_gpus));
  }
  return absl::OkStatus();
}

absl::StatusOr<PhysicalPlan> Rebalance(const PhysicalRequest& request) {
  const PhysicalShape& shape = request.shape;
  BALLAST_RETURN_IF_ERROR(CheckSize("num_groups", request.num_groups));
  BALLAST_RETURN_IF_ERROR(CheckSize("num_nodes", request.num_nodes));
  if (shape.num_replicas < shape.num_experts) {
    return InvalidSize("num_replicas", shape.num_replicas,
                       absl::StrCat("must be at least num_experts, ", shape.num_experts));
  }
  const bool grouped = request.num_groups % request.num_nodes == 0;
  if (grouped && shape.num_experts % request.num_groups != 0) {
    return InvalidSize("num_groups", request.num_groups, absl::StrCat("must divide num_experts, ", shape.num_experts));
  }
  if (grouped && shape.num_gpus % request.num_nodes != 0) {
    return InvalidSize("num_nodes", request.num_nodes, absl::StrCat("must divide num_gpus, ", shape.num_gpus));
  }
  if (request.proposals < 0 || request.proposals > kMostProposals) {
    return InvalidSize("proposals", request.proposals, "must lie in 0 .. 1000000000");
  }
  BALLAST_RETURN_IF_ERROR(CheckWeight(shape, request.weight));
  BALLAST_RETURN_IF_ERROR(CheckMap("previous", shape, request.previous));

  PhysicalPlan plan;
  plan.phy2log.reserve(static_cast<size_t>(shape.num_layers) * shape.num_replicas);
  if (request.policy == PhysicalRequest::Policy::kEplb) {
    PlaceEplb(request, plan);
  } else {
    BALLAST_RETURN_IF_ERROR(PlaceCostAware(request, grouped && request.num_nodes > 1, plan));
  }
  const bool numbered = !plan.rank.empty();
  plan.rank.resize(plan.phy2log.size());
  plan.logcnt.resize(request.weight.size());
  for (int32_t l = 0; l < shape.num_layers; ++l) {
    const size_t first = static_cast<size_t>(l) * shape.num_replicas;
    const auto map = std::span(plan.phy2log).subspan(first, shape.num_replicas);
    const auto rank = std::span(plan.rank).subspan(first, shape.num_replicas);
    if (!request.previous.empty()) {
      KeepSlots(shape.num_gpus, request.previous.subspan(first, shape.num_replicas), map, rank);
    }
    const auto count = std::span(plan.logcnt).subspan(static_cast<size_t>(l) * shape.num_experts, shape.num_experts);
    for (int32_t p = 0; p < shape.num_replicas; ++p) {
      if (!numbered) rank[p] = count[map[p]];
      ++count[map[p]];
    }
  }
  if (request.split == PhysicalRequest::Split::kShares && plan.shares.empty()) {
    BALLAST_ASSIGN_OR_RETURN(plan.shares, SolvePhysicalShares(shape, request.weight, plan.phy2log));
  }
  return plan;
}

absl::Status LogicalToPhysical(const PhysicalShape& shape, std::span<const int64_t> phy2log,
                               std::span<const int64_t> rank, int32_t width, std::span<int64_t> log2phy) {
  BALLAST_RETURN_IF_ERROR(CheckMap("phy2log", shape, phy2log));
  std::vector<int32_t> count(shape.num_experts);
  // First find what is wrong, for outputs are only written to when nothing is.
  for (const bool write : {false, true}) {
    if (write) std::fill(log2phy.begin(), log2phy.end(), -1);
    for (int32_t l = 0; l < shape.num_layers; ++l) {
      std::fill(count.begin(), count.end(), 0);
      for (int32_t p = 0; p < shape.num_replicas; ++p) {
        const size_t i = static_cast<size_t>(l) * shape.num_replicas + p;
        if (phy2log[i] < 0) continue;
        const int64_t at = rank.empty() ? count[phy2log[i]] : rank[i];
        ++count[phy2log[i]];
        if (at < 0) return absl::InvalidArgumentError(absl::StrCat("rank[", l, "][", p, "]: ", at, "; at least 0"));
        if (at >= width) {
          return InvalidSize("width", width, absl::StrCat("layer ", l, " has a replica of rank ", at));
        }
        if (write) log2phy[(static_cast<size_t>(l) * shape.num_experts + phy2log[i]) * width + at] = p;
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> SolvePhysicalShares(const PhysicalShape& shape, std::span<const double> weight,
                                                        std::span<const int64_t> phy2log) {
  BALLAST_RETURN_IF_ERROR(CheckWeight(shape, weight));
  BALLAST_RETURN_IF_ERROR(CheckMap("phy2log", shape, phy2log));
  std::vector<double> shares(phy2log.size());
  DispatchTable table;
  std::vector<int32_t> begin(shape.num_experts + 1);  // into `physical`
  std::vector<int32_t> physical(shape.num_replicas);  // by expert, then slot
  std::vector<int32_t> copies;                        // [replicas of the table]
  std::vector<int64_t> flow;
  for (int32_t l = 0; l < shape.num_layers; ++l) {
    const size_t first = static_cast<size_t>(l) * shape.num_replicas;
    const auto map = phy2log.subspan(first, shape.num_replicas);
    std::fill(begin.begin(), begin.end(), 0);
    for (const int64_t e : map) {
      if (e >= 0) ++begin[e + 1];
    }
    const auto missing = std::find(begin.begin() + 1, begin.end(), 0);
    if (missing != begin.end()) {
      return absl::InvalidArgumentError(absl::StrCat("phy2log[", l, "]: logical expert ", missing - begin.begin() - 1,
                                                     " is missing; every one of the ", shape.num_experts,
                                                     " must be there"));
    }
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    for (int32_t p = 0; p < shape.num_replicas; ++p) {
      if (map[p] >= 0) physical[begin[map[p]]++] = p;
    }
    // Every begin has become the next one's.
    std::rotate(begin.begin(), begin.end() - 1, begin.end());
    begin[0] = 0;
    // Replicas on one GPU are one to the solver, and share equally.
    table.begin.assign(1, 0);
    table.rank.clear();
    copies.clear();
    for (int32_t e = 0; e < shape.num_experts; ++e) {
      for (int32_t i = begin[e]; i < begin[e + 1]; ++i) {
        const int32_t gpu = physical[i] / shape.slots();
        if (table.num_replicas() == table.begin.back() || table.rank.back() != gpu) {
          table.rank.push_back(gpu);
          copies.push_back(0);
        }
        ++copies.back();
      }
      table.begin.push_back(table.num_replicas());
    }
    table.weight.assign(table.rank.size(), 1);
    const std::vector<int64_t> tokens =
        ToIntegers(weight.subspan(static_cast<size_t>(l) * shape.num_experts, shape.num_experts));
    flow.assign(table.rank.size(), 0);
    ShareSolver(table, shape.num_gpus).Solve(tokens, flow);
    for (int32_t e = 0; e < shape.num_experts; ++e) {
      int32_t i = begin[e];
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        const double share = tokens[e] == 0 ? 1.0 / (begin[e + 1] - begin[e])
                                            : static_cast<double>(flow[r]) / static_cast<double>(tokens[e]) / copies[r];
        for (int32_t copy = 0; copy < copies[r]; ++copy) shares[first + physical[i++]] = share;
      }
    }
  }
  return shares;
}

std::vector<double> EqualShares(const PhysicalShape& shape, const PhysicalPlan& plan) {
  std::vector<double> shares(plan.phy2log.size());
  for (size_t i = 0; i < shares.size(); ++i) {
    const size_t layer = i / shape.num_replicas;
    shares[i] = 1 / static_cast<double>(plan.logcnt[layer * shape.num_experts + plan.phy2log[i]]);
  }
  return shares;
}

void KeepSlots(int32_t gpus, std::span<const int64_t> previous, std::span<int64_t> phy2log, std::span<int64_t> rank) {
  const size_t slots = phy2log.size() / gpus;
  std::vector<size_t> order(slots);  // entries by expert, then place
  std::vector<size_t> taken(slots);  // at the first entry of an expert: how many of its entries have a slot
  std::vector<size_t> entry(slots);  // of each slot; `slots`: none yet
  std::vector<bool> placed(slots);   // entries
  std::vector<int64_t> map(slots);
  std::vector<int64_t> number(slots);
  for (int32_t g = 0; g < gpus; ++g) {
    const size_t first = g * slots;
    std::copy_n(phy2log.begin() + static_cast<std::ptrdiff_t>(first), slots, map.begin());
    if (!rank.empty()) std::copy_n(rank.begin() + static_cast<std::ptrdiff_t>(first), slots, number.begin());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return map[a] < map[b]; });
    std::fill(taken.begin(), taken.end(), 0);
    std::fill(placed.begin(), placed.end(), false);
    for (size_t s = 0; s < slots; ++s) {
      entry[s] = slots;
      const int64_t was = previous[first + s];
      if (was < 0) continue;
      const auto at =
          std::lower_bound(order.begin(), order.end(), was, [&](size_t i, int64_t e) { return map[i] < e; });
      if (at == order.end() || map[*at] != was) continue;
      const auto begin = static_cast<size_t>(at - order.begin());
      const size_t next = begin + taken[begin];
      if (next == slots || map[order[next]] != was) continue;
      ++taken[begin];
      entry[s] = order[next];
      placed[entry[s]] = true;
    }
    size_t next = 0;
    for (size_t s = 0; s < slots; ++s) {
      if (entry[s] == slots) {
        while (placed[next]) ++next;
        entry[s] = next++;
      }
      phy2log[first + s] = map[entry[s]];
      if (!rank.empty()) rank[first + s] = number[entry[s]];
    }
  }
}

}  // namespace ballast
