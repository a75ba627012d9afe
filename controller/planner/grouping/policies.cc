#include "controller/planner/grouping/policies.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/planner/packs.h"
#include "controller/planner/score.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

absl::Status ValidateFor(const Routes& routes, const PlanRequest& request, std::string_view policy) {
  BALLAST_RETURN_IF_ERROR(Validate(routes));
  const LoadMatrix& load = request.scenarios[0].load;
  if (routes.layers != load.layers || routes.experts != load.experts) {
    return absl::InvalidArgumentError(absl::StrCat("routes of ", routes.layers, " layers and ", routes.experts,
                                                   " experts; the loads have ", load.layers, " and ", load.experts));
  }
  if (request.replicas_per_worker) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(policy), " gives every layer as many replicas, not ",
                                                   *request.replicas_per_worker, " a worker over all layers"));
  }
  return absl::OkStatus();
}

// Equal: workers that can change names.
std::vector<int32_t> Kinds(const Topology& topology, std::span<const int32_t> slots, std::span<const double> price) {
  std::vector<int32_t> kind;
  std::map<std::tuple<int32_t, uint32_t, double>, int32_t> known;
  for (size_t w = 0; w < slots.size(); ++w) {
    const auto key = std::tuple(slots[w], topology.workers[w].speed, price.empty() ? 1.0 : price[w]);
    kind.push_back(known.emplace(key, static_cast<int32_t>(known.size())).first->second);
  }
  return kind;
}

// The placement in force as packs; none where the search cannot start from it.
std::optional<Packs> CurrentPacks(const DispatchTable& layer, std::span<const int32_t> slots) {
  Packs packs(slots.size());
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    if (layer.begin[e] == layer.begin[e + 1]) return std::nullopt;
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) {
      std::vector<int32_t>& pack = packs[layer.rank[r]];
      pack.push_back(e);
      if (static_cast<int32_t>(pack.size()) > slots[layer.rank[r]]) return std::nullopt;
    }
  }
  return packs;
}

// Each replica's part of its expert's pairs.
std::vector<double> Parts(const DispatchTable& layer) {
  std::vector<double> part(layer.num_replicas());
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    double sum = 0;
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) sum += layer.weight[r];
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) part[r] = layer.weight[r] / sum;
  }
  return part;
}

// Worker w of the layer becomes name[w].
DispatchTable Rename(const DispatchTable& layer, std::span<const int32_t> name) {
  DispatchTable out = layer;
  std::vector<std::pair<int32_t, uint32_t>> replicas;
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    replicas.clear();
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) {
      replicas.emplace_back(name[layer.rank[r]], layer.weight[r]);
    }
    std::sort(replicas.begin(), replicas.end());
    for (size_t i = 0; i < replicas.size(); ++i) {
      std::tie(out.rank[layer.begin[e] + i], out.weight[layer.begin[e] + i]) = replicas[i];
    }
  }
  return out;
}

// [experts of the layer before][experts]: a token's chance to choose both, tasks weighted.
std::vector<double> Transitions(const Routes& routes, int32_t layer) {
  const LayerRoutes before = LayerOf(routes, layer - 1), after = LayerOf(routes, layer);
  const auto k = static_cast<size_t>(routes.top_k);
  std::vector<double> out(static_cast<size_t>(routes.experts) * routes.experts);
  for (size_t f = 0; f < after.tasks.size(); ++f) {
    const auto a = before.tasks[f].experts, b = after.tasks[f].experts;
    const size_t pairs = std::min(a.size(), b.size());
    if (pairs == 0) continue;
    const double token = after.tasks[f].weight / static_cast<double>(pairs / k);
    for (size_t row = 0; row < pairs; row += k) {
      for (size_t i = row; i < row + k; ++i) {
        for (size_t j = row; j < row + k && a[i] >= 0; ++j) {
          if (b[j] >= 0) out[static_cast<size_t>(a[i]) * routes.experts + b[j]] += token;
        }
      }
    }
  }
  return out;
}

}  // namespace

std::vector<double> CopyPrices(const Topology& topology) {
  const double near = 1 / topology.node_bytes_per_second, far = 1 / topology.cross_node_bytes_per_second;
  std::vector<double> price;
  double sum = 0;
  for (size_t w = 0; w < topology.workers.size(); ++w) {
    // Counted first: sums in another order would differ where nothing else does.
    int32_t same_node = -1;
    for (const TopologyWorker& source : topology.workers) same_node += source.node == topology.workers[w].node;
    const auto others = static_cast<int32_t>(topology.workers.size()) - 1 - same_node;
    const double cost = same_node * near + others * far;
    price.push_back(cost);
    sum += cost;
  }
  if (std::all_of(price.begin(), price.end(), [&](double p) { return p == price[0]; })) return {};
  for (double& p : price) p *= static_cast<double>(price.size()) / sum;
  return price;
}

void AlignLayers(const Routes& routes, std::span<const int32_t> kind, std::vector<DispatchTable>& layers) {
  const auto workers = static_cast<int32_t>(kind.size());
  const auto tasks = static_cast<int32_t>(routes.tasks.size());
  std::vector<double> near(static_cast<size_t>(workers) * workers);
  std::vector<int64_t> value(near.size());
  for (int32_t l = 0; l < routes.layers; ++l) {
    std::fill(near.begin(), near.end(), 0);
    const std::vector<double> part = Parts(layers[l]);
    if (l == 0) {
      const LayerRoutes layer = LayerOf(routes, 0);
      std::vector<double> use(static_cast<size_t>(tasks) * workers);
      for (int32_t f = 0; f < tasks; ++f) {
        for (const int32_t e : layer.tasks[f].experts) {
          for (int32_t r = e < 0 ? 0 : layers[0].begin[e]; e >= 0 && r < layers[0].begin[e + 1]; ++r) {
            use[f * workers + layers[0].rank[r]] += part[r] / static_cast<double>(layer.tasks[f].pairs);
          }
        }
      }
      for (int32_t w = 0; w < workers; ++w) {
        for (int32_t to = 0; to < workers; ++to) near[w * workers + to] = use[to * tasks / workers * workers + w];
      }
    } else {
      const std::vector<double> transitions = Transitions(routes, l);
      const std::vector<double> part_before = Parts(layers[l - 1]);
      for (int32_t a = 0; a < routes.experts; ++a) {
        for (int32_t b = 0; b < routes.experts; ++b) {
          const double both = transitions[static_cast<size_t>(a) * routes.experts + b];
          if (both == 0) continue;
          for (int32_t r = layers[l - 1].begin[a]; r < layers[l - 1].begin[a + 1]; ++r) {
            for (int32_t s = layers[l].begin[b]; s < layers[l].begin[b + 1]; ++s) {
              near[layers[l].rank[s] * workers + layers[l - 1].rank[r]] += both * part_before[r] * part[s];
            }
          }
        }
      }
    }
    for (int32_t w = 0; w < workers; ++w) {
      for (int32_t to = 0; to < workers; ++to) {
        value[w * workers + to] =
            kind[w] == kind[to] ? std::llround(near[w * workers + to] * (1 << 24)) : -(int64_t{1} << 44);
      }
    }
    layers[l] = Rename(layers[l], BestAssignment(value, workers));
  }
}

absl::StatusOr<std::vector<DispatchTable>> TacgPolicy::Place(const PlanRequest& request) const {
  BALLAST_RETURN_IF_ERROR(ValidateFor(routes_, request, name()));
  BALLAST_ASSIGN_OR_RETURN(const int32_t slots, SlotsPerLayer(request));
  const auto workers = static_cast<int32_t>(request.topology.workers.size());
  std::vector<int32_t> sizes, room;
  for (int32_t w = 0; w < workers; ++w) {
    sizes.push_back(routes_.experts / workers + (w < routes_.experts % workers ? 1 : 0));
    room.push_back(slots - sizes[w]);
  }
  if (routes_.experts < workers) {
    return absl::FailedPreconditionError(
        absl::StrCat("tacg: ", routes_.experts, " experts are too few for ", workers, " workers"));
  }
  GesrOptions gesr;
  gesr.secondaries = std::min(gesr.secondaries, workers - 1);
  const int64_t spare = int64_t{slots} * workers - routes_.experts;
  gesr.experts = gesr.secondaries == 0 ? 0 : static_cast<int32_t>(spare / gesr.secondaries);
  if (gesr.experts > routes_.experts) {
    return absl::FailedPreconditionError(absl::StrCat("tacg: ", spare, " slots beyond one an expert in a layer; ",
                                                      routes_.experts, " experts with ", gesr.secondaries,
                                                      " replicas more each take fewer"));
  }
  std::vector<DispatchTable> current;
  if (request.current) current = Onto(*request.current, request.topology);
  const std::vector<int32_t> kind = Kinds(request.topology, sizes, {});
  std::vector<DispatchTable> layers;
  for (int32_t l = 0; l < routes_.layers; ++l) {
    const std::vector<TaskStatistics> tasks = Statistics(LayerOf(routes_, l));
    Packs packs = PlaceTacg(tasks, sizes, options_);
    ReplicateGeneric(tasks, TaskAffinity(tasks, options_), gesr, room, packs);
    if (!current.empty()) packs = Relabel(packs, current[l], kind);
    DispatchTable& table = layers.emplace_back(ToTable(packs, routes_.experts));
    table.weight.assign(table.weight.size(), 1);
  }
  return layers;
}

absl::StatusOr<std::vector<DispatchTable>> TaskAwarePolicy::Place(const PlanRequest& request) const {
  BALLAST_RETURN_IF_ERROR(ValidateFor(routes_, request, name()));
  BALLAST_ASSIGN_OR_RETURN(const std::vector<int32_t> slots, SlotsOfWorkers(request));
  const std::vector<uint32_t> speed = Speeds(request.topology);
  const std::vector<double> price = CopyPrices(request.topology);
  std::vector<DispatchTable> current;
  if (request.current) current = Onto(*request.current, request.topology);
  std::vector<DispatchTable> layers;
  for (int32_t l = 0; l < routes_.layers; ++l) {
    const LayerRoutes layer = LayerOf(routes_, l);
    GroupProblem problem{&layer, slots, speed, price, options_.limits};
    if (!current.empty()) problem.current = CurrentPacks(current[l], slots);
    problem.move_price = problem.current ? options_.move_price : 0;
    problem.proposals = options_.proposals;
    DispatchTable table = GroupExpertsByRoutes(problem).table;
    layers.push_back(std::move(table));
  }
  if (current.empty()) AlignLayers(routes_, Kinds(request.topology, slots, price), layers);
  return layers;
}

}  // namespace ballast
