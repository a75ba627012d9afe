#include "controller/planner/budget.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "controller/planner/packs.h"
#include "controller/planner/search.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {

std::vector<int32_t> AllocateReplicas(std::span<const std::vector<double>> cost, std::span<const int32_t> sizes,
                                      int64_t budget) {
  BALLAST_CHECK(!sizes.empty() && sizes[0] == 0 && sizes.size() < 256) << sizes.size() << " sizes";
  const auto layers = cost.size();
  // More than every layer's last size cannot be used.
  const auto capacity = static_cast<size_t>(std::min<int64_t>(budget, static_cast<int64_t>(layers) * sizes.back()));
  std::vector<double> least(capacity + 1, 0);
  std::vector<double> next(capacity + 1);
  std::vector<std::vector<uint8_t>> choice(layers, std::vector<uint8_t>(capacity + 1));
  for (size_t l = 0; l < layers; ++l) {
    for (size_t c = 0; c <= capacity; ++c) {
      next[c] = std::numeric_limits<double>::infinity();
      for (size_t j = 0; j < sizes.size() && static_cast<size_t>(sizes[j]) <= c; ++j) {
        const double value = least[c - sizes[j]] + cost[l][j];
        if (value < next[c]) {
          next[c] = value;
          choice[l][c] = static_cast<uint8_t>(j);
        }
      }
    }
    least.swap(next);
  }
  std::vector<int32_t> out(layers);
  std::vector<size_t> order(layers);
  size_t left = capacity;
  for (size_t l = layers; l-- > 0;) {
    out[l] = sizes[choice[l][left]];
    order[l] = l;
    left -= out[l];
  }
  const auto cost_of = [&](size_t l) {
    return cost[l][std::lower_bound(sizes.begin(), sizes.end(), out[l]) - sizes.begin()];
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return cost_of(a) > cost_of(b); });
  for (const size_t l : order) {
    const auto more = std::min<int64_t>(static_cast<int64_t>(left), sizes.back() - out[l]);
    out[l] += static_cast<int32_t>(more);
    left -= more;
  }
  return out;
}

namespace {

// Takes a slot from a worker that has more than its total: on to one with fewer, through workers that pass one on in
// another layer, fewest of them; or from the layer with the most, where no chain leads there.
void Relieve(size_t over, std::span<const int32_t> totals, int32_t most, std::vector<std::vector<int32_t>>& slots,
             std::vector<int64_t>& sum) {
  struct Step {
    size_t from = 0, layer = 0;
    bool reached = false;
  };
  std::vector<Step> steps(totals.size());
  std::vector<size_t> order = {over};
  steps[over].reached = true;
  for (size_t i = 0; i < order.size(); ++i) {
    for (size_t l = 0; l < slots.size(); ++l) {
      if (slots[l][order[i]] == 0) continue;
      for (size_t w = 0; w < totals.size(); ++w) {
        if (steps[w].reached || slots[l][w] == most) continue;
        steps[w] = {order[i], l, true};
        order.push_back(w);
        if (sum[w] >= totals[w]) continue;
        --sum[over];
        ++sum[w];
        for (size_t to = w; to != over; to = steps[to].from) {
          --slots[steps[to].layer][steps[to].from];
          ++slots[steps[to].layer][to];
        }
        return;
      }
    }
  }
  // Every worker that is not reached has `most` in each layer of those that are. They have together more than their
  // totals, so there is one; and such a layer has more than `most`.
  size_t largest = slots.size();
  int64_t has = most;
  for (size_t l = 0; l < slots.size(); ++l) {
    const int64_t in_layer = std::accumulate(slots[l].begin(), slots[l].end(), int64_t{0});
    if (slots[l][over] > 0 && in_layer > has) {
      largest = l;
      has = in_layer;
    }
  }
  BALLAST_CHECK(largest < slots.size()) << "totals are fewer than replicas, or worker " << over << " has none";
  --slots[largest][over];
  --sum[over];
}

}  // namespace

std::vector<std::vector<int32_t>> SpreadSlots(std::span<const int32_t> replicas, std::span<const int32_t> totals,
                                              int32_t most) {
  const size_t workers = totals.size();
  const int64_t all = std::accumulate(totals.begin(), totals.end(), int64_t{0});
  std::vector<std::vector<int32_t>> out;
  std::vector<int64_t> sum(workers);
  // How far each worker is behind its part so far, in parts of a slot of 1 / all.
  std::vector<int64_t> behind(workers);
  if (all == 0) return std::vector(replicas.size(), std::vector<int32_t>(workers));
  int64_t so_far = 0;
  for (const int32_t count : replicas) {
    so_far += count;
    std::vector<int32_t>& slots = out.emplace_back(workers);
    int64_t left = count;
    for (size_t w = 0; w < workers; ++w) {
      behind[w] = totals[w] * so_far - sum[w] * all;
      slots[w] = static_cast<int32_t>(std::clamp<int64_t>(behind[w] / all, 0, most));
      behind[w] -= slots[w] * all;
      left -= slots[w];
    }
    for (; left < 0; ++left) {
      size_t ahead = workers;
      for (size_t w = 0; w < workers; ++w) {
        if (slots[w] > 0 && (ahead == workers || behind[w] < behind[ahead])) ahead = w;
      }
      --slots[ahead];
      behind[ahead] += all;
    }
    while (left > 0) {
      std::vector<size_t> alike;
      for (size_t w = 0; w < workers; ++w) {
        if (slots[w] == most) continue;
        const auto before = [&](size_t a, size_t b) {
          return behind[a] != behind[b] ? behind[a] > behind[b] : slots[a] < slots[b];
        };
        if (!alike.empty() && before(w, alike[0])) alike.clear();
        if (alike.empty() || !before(alike[0], w)) alike.push_back(w);
      }
      BALLAST_CHECK(!alike.empty()) << count << " replicas on " << workers << " workers, " << most << " at the most";
      const auto take = std::min(static_cast<size_t>(left), alike.size());
      for (size_t i = 0; i < take; ++i) {
        const size_t w = alike[i * alike.size() / take];
        ++slots[w];
        behind[w] -= all;
      }
      left -= static_cast<int64_t>(take);
    }
    for (size_t w = 0; w < workers; ++w) sum[w] += slots[w];
  }
  // Rounding may have left a worker one above its total and another one below.
  for (size_t over = 0; over < workers; ++over) {
    for (size_t l = 0; l < out.size() && sum[over] > totals[over]; ++l) {
      for (size_t under = 0; under < workers && sum[over] > totals[over] && out[l][over] > 0; ++under) {
        if (sum[under] >= totals[under] || out[l][under] == most) continue;
        --out[l][over];
        ++out[l][under];
        --sum[over];
        ++sum[under];
      }
    }
  }
  for (size_t w = 0; w < workers; ++w) {
    while (sum[w] > totals[w]) Relieve(w, totals, most, out, sum);
  }
  return out;
}

std::vector<int32_t> ReplicaSizes(int32_t most) {
  std::vector<int32_t> sizes = {0};
  // Steps of a half and a third in turn: 1, 2, 3, 4, 6, 8, 12, ...
  for (int64_t two = 1; two <= most; two *= 2) {
    sizes.push_back(static_cast<int32_t>(two));
    if (two >= 2 && two / 2 * 3 <= most) sizes.push_back(static_cast<int32_t>(two / 2 * 3));
  }
  if (sizes.back() != most) sizes.push_back(most);
  return sizes;
}

absl::StatusOr<ReplicaBudget> BudgetOf(const PlanRequest& request) {
  if (!request.replicas_per_worker) {
    return absl::InvalidArgumentError("replicas_per_worker: is missing; this policy plans under a budget of replicas");
  }
  const int32_t each = *request.replicas_per_worker;
  if (each < 0) return absl::InvalidArgumentError(absl::StrCat("replicas_per_worker: ", each, "; must be at least 0"));
  const LoadMatrix& load = request.scenarios[0].load;
  const auto workers = static_cast<int64_t>(request.topology.workers.size());
  const int64_t once = static_cast<int64_t>(load.layers) * load.experts;
  ReplicaBudget budget{each * workers, {}};
  // Slots go round to those with room, fewest first.
  std::vector<int64_t> room;
  for (const TopologyWorker& w : request.topology.workers) {
    room.push_back(std::min<int64_t>(w.capacity.slots - w.capacity.staging_slots, once));
  }
  std::vector<int64_t> order(workers);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return room[a] < room[b]; });
  budget.slots.resize(workers);
  int64_t left = once + budget.replicas;
  for (int64_t i = 0; i < workers; ++i) {
    const int64_t part = std::min(room[order[i]], left / (workers - i));
    budget.slots[order[i]] = static_cast<int32_t>(part);
    left -= part;
  }
  if (left > 0) {
    const int64_t all = std::accumulate(room.begin(), room.end(), int64_t{0});
    return absl::FailedPreconditionError(absl::StrCat("replicas_per_worker: ", each, " beside one replica of each of ",
                                                      load.layers, " x ", load.experts, " experts are ",
                                                      once + budget.replicas, " slots; the ", workers,
                                                      " workers have room for ", all, " beside staging"));
  }
  return budget;
}

absl::StatusOr<std::vector<DispatchTable>> CraftPolicy::Place(const PlanRequest& request) const {
  BALLAST_ASSIGN_OR_RETURN(const ReplicaBudget budget, BudgetOf(request));
  const auto workers = static_cast<int32_t>(request.topology.workers.size());
  const LoadMatrix blend = Blend(request.scenarios);
  std::vector<int32_t> sizes = {0};
  const int64_t most =
      std::min({int64_t{workers}, static_cast<int64_t>(blend.experts) * (workers - 1), budget.replicas});
  for (int32_t size = 1; size <= most; size *= 2) {
    sizes.push_back(size);
  }
  const auto place = [&](int32_t l, std::span<const int32_t> slots) {
    DispatchTable table = ToTable(PackGreedily(blend.layer(l), slots), blend.experts);
    table.weight.assign(table.weight.size(), 1);
    return table;
  };
  std::vector<std::vector<double>> cost(blend.layers);
  for (int32_t l = 0; l < blend.layers; ++l) {
    for (const int32_t size : sizes) {
      const int32_t replicas[] = {blend.experts + size};
      const DispatchTable table = place(l, SpreadSlots(replicas, budget.slots, blend.experts)[0]);
      cost[l].push_back(1 - Balancedness(WorkerLoads(table, blend.layer(l), request.topology)));
    }
  }
  std::vector<int32_t> replicas = AllocateReplicas(cost, sizes, budget.replicas);
  for (int32_t& r : replicas) r += blend.experts;
  const auto slots = SpreadSlots(replicas, budget.slots, blend.experts);
  std::vector<DispatchTable> layers;
  for (int32_t l = 0; l < blend.layers; ++l) layers.push_back(place(l, slots[l]));
  return layers;
}

}  // namespace ballast
