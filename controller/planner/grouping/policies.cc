#include "controller/planner/grouping/policies.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/planner/packs.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr int32_t kUnlimited = std::numeric_limits<int32_t>::max();

absl::Status ValidateFor(const Routes& routes, const PlanRequest& request) {
  BALLAST_RETURN_IF_ERROR(Validate(routes));
  const LoadMatrix& load = request.scenarios[0].load;
  if (routes.layers != load.layers || routes.experts != load.experts) {
    return absl::InvalidArgumentError(absl::StrCat("routes of ", routes.layers, " layers and ", routes.experts,
                                                   " experts; the loads have ", load.layers, " and ", load.experts));
  }
  return absl::OkStatus();
}

// Replicas of `to` that `from` has not.
int64_t Arrivals(const DispatchTable& from, const DispatchTable& to) {
  int64_t out = 0;
  for (int32_t e = 0; e < to.num_experts(); ++e) {
    const auto begin = from.rank.begin() + from.begin[e], end = from.rank.begin() + from.begin[e + 1];
    for (int32_t r = to.begin[e]; r < to.begin[e + 1]; ++r) out += std::find(begin, end, to.rank[r]) == end;
  }
  return out;
}

// [layers][workers] slots of workers that each have room for as many experts as the others, or one more, and `replicas`
// more over all layers: in each step the layer gets another one on every worker that gains most by it, by a short
// search.
std::vector<std::vector<int32_t>> AllotSlots(const Routes& routes, std::span<const uint32_t> speed,
                                             std::span<const double> price, const GroupLimits& limits, int32_t workers,
                                             int32_t replicas) {
  constexpr int64_t kShort = 15'000;
  const int32_t each = routes.experts / workers, more = routes.experts % workers;
  std::vector<std::vector<int32_t>> slots(routes.layers, std::vector<int32_t>(workers, each));
  // What does not divide goes round, so that every worker has as many over all layers.
  for (int32_t l = 0; l < routes.layers; ++l) {
    for (int32_t i = 0; i < more; ++i) ++slots[l][(static_cast<int64_t>(l) * more + i) % workers];
  }
  const auto cost = [&](int32_t l, int32_t extra) {
    const LayerRoutes layer = LayerOf(routes, l);
    std::vector<int32_t> with = slots[l];
    for (int32_t& s : with) s = std::min(s + extra, routes.experts);
    return GroupExpertsByRoutes({&layer, with, speed, price, limits, {}, 0, kUnlimited, kShort}).cost;
  };
  std::vector<double> now(routes.layers), next(routes.layers);
  for (int32_t l = 0; l < routes.layers && replicas > 0; ++l) {
    now[l] = cost(l, 0);
    next[l] = cost(l, 1);
  }
  for (int32_t r = 0; r < replicas; ++r) {
    int32_t best = -1;
    for (int32_t l = 0; l < routes.layers; ++l) {
      if (*std::min_element(slots[l].begin(), slots[l].end()) >= routes.experts) continue;
      if (best < 0 || now[l] - next[l] > now[best] - next[best]) best = l;
    }
    if (best < 0) break;
    for (int32_t& s : slots[best]) s = std::min(s + 1, routes.experts);
    now[best] = next[best];
    if (r + 1 < replicas) next[best] = cost(best, 1);
  }
  return slots;
}

// [workers] equal for workers with as many slots in every layer.
std::vector<int32_t> AlikeInSlots(const std::vector<std::vector<int32_t>>& slots) {
  std::vector<int32_t> out;
  std::map<std::vector<int32_t>, int32_t> known;
  for (size_t w = 0; w < slots[0].size(); ++w) {
    std::vector<int32_t> of_worker;
    for (const std::vector<int32_t>& layer : slots) of_worker.push_back(layer[w]);
    out.push_back(known.emplace(std::move(of_worker), static_cast<int32_t>(known.size())).first->second);
  }
  return out;
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

Packs FitPacks(const DispatchTable& layer, std::span<const int32_t> slots, std::span<const double> load) {
  Packs packs(slots.size());
  std::vector<int32_t> replicas(layer.num_experts());
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    for (int32_t r = layer.begin[e]; r < layer.begin[e + 1]; ++r) packs[layer.rank[r]].push_back(e);
    replicas[e] = layer.begin[e + 1] - layer.begin[e];
  }
  // Of those that may go, the one with the least load a replica.
  const auto least = [&](const std::vector<int32_t>& pack, bool spare) {
    auto best = pack.end();
    for (auto e = pack.begin(); e != pack.end(); ++e) {
      if (spare && replicas[*e] < 2) continue;
      if (best == pack.end() || load[*e] * replicas[*best] < load[*best] * replicas[*e]) best = e;
    }
    return best;
  };
  for (size_t w = 0; w < packs.size(); ++w) {
    std::vector<int32_t>& pack = packs[w];
    while (static_cast<int32_t>(pack.size()) > slots[w]) {
      auto gone = least(pack, true);
      if (gone == pack.end()) gone = least(pack, false);
      --replicas[*gone];
      pack.erase(gone);
    }
  }
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    if (replicas[e] > 0) continue;
    size_t to = packs.size();
    for (size_t w = 0; w < packs.size(); ++w) {
      const auto room = slots[w] - static_cast<int32_t>(packs[w].size());
      if (room > 0 && (to == packs.size() || room > slots[to] - static_cast<int32_t>(packs[to].size()))) to = w;
    }
    // No room: as there are slots for all experts, some hold spare replicas.
    for (size_t w = 0; to == packs.size(); ++w) {
      BALLAST_CHECK(w < packs.size()) << "fewer slots than experts";
      const auto spare = least(packs[w], true);
      if (spare == packs[w].end()) continue;
      --replicas[*spare];
      packs[w].erase(spare);
      to = w;
    }
    packs[to].push_back(e);
    ++replicas[e];
  }
  return packs;
}

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
  BALLAST_RETURN_IF_ERROR(ValidateFor(routes_, request));
  if (request.replicas_per_worker) {
    return absl::InvalidArgumentError(absl::StrCat("tacg gives every layer as many replicas, not ",
                                                   *request.replicas_per_worker, " a worker over all layers"));
  }
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
  const std::vector<int32_t> kind = AlikeWorkers(sizes, Speeds(request.topology), {});
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
  BALLAST_RETURN_IF_ERROR(ValidateFor(routes_, request));
  const std::vector<uint32_t> speed = Speeds(request.topology);
  const std::vector<double> price = CopyPrices(request.topology);
  // [layers][workers]
  std::vector<std::vector<int32_t>> slots;
  if (request.replicas_per_worker) {
    slots = AllotSlots(routes_, speed, price, options_.limits, static_cast<int32_t>(request.topology.workers.size()),
                       *request.replicas_per_worker);
    for (size_t w = 0; w < request.topology.workers.size(); ++w) {
      const TopologyWorker& worker = request.topology.workers[w];
      int32_t sum = 0;
      for (const std::vector<int32_t>& layer : slots) sum += layer[w];
      if (const int32_t fit = worker.capacity.slots - worker.capacity.staging_slots; sum > fit) {
        return absl::FailedPreconditionError(absl::StrCat("replicas_per_worker: ", *request.replicas_per_worker,
                                                          " make ", sum, " slots; worker '", worker.name,
                                                          "' has room for ", fit));
      }
    }
  } else {
    BALLAST_ASSIGN_OR_RETURN(const std::vector<int32_t> each, SlotsOfWorkers(request));
    slots.assign(routes_.layers, each);
  }
  std::vector<DispatchTable> current;
  if (request.current && !options_.anew) current = Onto(*request.current, request.topology);
  if (current.empty()) {
    std::vector<DispatchTable> layers;
    for (int32_t l = 0; l < routes_.layers; ++l) {
      const LayerRoutes layer = LayerOf(routes_, l);
      layers.push_back(
          GroupExpertsByRoutes({&layer, slots[l], speed, price, options_.limits, {}, 0, kUnlimited, options_.proposals})
              .table);
    }
    AlignLayers(routes_, AlikeWorkers(AlikeInSlots(slots), speed, price), layers);
    return layers;
  }
  BALLAST_ASSIGN_OR_RETURN(const int64_t budget, AllowedMoves(options_.budget, request.expert_bytes));
  const auto most =
      options_.budget.limited() ? static_cast<int32_t>(std::min<int64_t>(budget, kUnlimited)) : kUnlimited;
  // What has to move is not the search's to decide: it is neither priced nor limited.
  std::vector<Packs> start;
  std::vector<bool> fits;
  int64_t left = most;
  for (int32_t l = 0; l < routes_.layers; ++l) {
    start.push_back(FitPacks(current[l], slots[l], MixLoad(LayerOf(routes_, l))));
    const DispatchTable table = ToTable(start[l], routes_.experts);
    fits.push_back(table.begin == current[l].begin && table.rank == current[l].rank);
    left -= Arrivals(current[l], table);
  }
  left = std::max<int64_t>(0, left);
  const auto search = [&](int32_t l, int64_t moves, bool anew) {
    const LayerRoutes layer = LayerOf(routes_, l);
    return GroupExpertsByRoutes({&layer, slots[l], speed, price, options_.limits, start[l], options_.move_price,
                                 static_cast<int32_t>(moves), options_.proposals, anew});
  };
  // Of each layer what a few moves bring, and what it brings to place it anew, where that is more.
  std::vector<GroupedLayer> few;
  std::vector<std::optional<GroupedLayer>> anew(routes_.layers);
  struct Step {
    double ratio;  // gain a move
    int32_t layer;
    bool anew;
    bool operator<(const Step& other) const {
      return std::tuple(-ratio, layer, anew) < std::tuple(-other.ratio, other.layer, other.anew);
    }
  };
  std::vector<Step> steps;
  for (int32_t l = 0; l < routes_.layers; ++l) {
    few.push_back(search(l, left, false));
    GroupedLayer other = left > 0 ? search(l, left, true) : few[l];
    if (other.Net() > few[l].Net() && other.moves <= few[l].moves) std::swap(few[l], other);
    const double won = few[l].cost_before - few[l].cost;
    // Those that move nothing cost nothing.
    const double ratio =
        few[l].moves > 0 ? won / static_cast<double>(few[l].moves) : std::numeric_limits<double>::infinity();
    steps.push_back({ratio, l, false});
    if (other.Net() <= few[l].Net() || other.moves > left) continue;
    // After the few moves of its layer, in whose place it comes.
    const double more = (few[l].cost - other.cost) / static_cast<double>(other.moves - few[l].moves);
    steps.push_back({std::min(ratio, more), l, true});
    anew[l] = std::move(other);
  }
  std::sort(steps.begin(), steps.end());
  for (const Step& step : steps) {
    GroupedLayer& layer = few[step.layer];
    if (step.anew) {
      if (anew[step.layer]->moves - layer.moves > left) continue;
      left -= anew[step.layer]->moves - layer.moves;
      layer = *std::move(anew[step.layer]);
      continue;
    }
    if (layer.moves > left) {
      if (left == 0 && fits[step.layer]) {
        layer.table = current[step.layer];
        layer.moves = 0;
        continue;
      }
      layer = search(step.layer, left, false);
    }
    left -= layer.moves;
  }
  std::vector<DispatchTable> layers;
  for (GroupedLayer& layer : few) layers.push_back(std::move(layer.table));
  return layers;
}

}  // namespace ballast
