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

std::vector<std::vector<int32_t>> SpreadSlots(std::span<const int32_t> replicas, int32_t workers) {
  std::vector<std::vector<int32_t>> out;
  std::vector<int64_t> sum(workers);
  for (const int32_t count : replicas) {
    std::vector<int32_t>& slots = out.emplace_back(workers, count / workers);
    int32_t remainder = count % workers;
    // Sums differ by at most one: first those with fewer, then the others.
    const int64_t fewest = *std::min_element(sum.begin(), sum.end());
    for (const int64_t level : {fewest, fewest + 1}) {
      std::vector<int32_t> alike;
      for (int32_t w = 0; w < workers; ++w) {
        if (sum[w] == level) alike.push_back(w);
      }
      const auto take = std::min<int64_t>(remainder, static_cast<int64_t>(alike.size()));
      for (int64_t i = 0; i < take; ++i) ++slots[alike[i * static_cast<int64_t>(alike.size()) / take]];
      remainder -= static_cast<int32_t>(take);
    }
    for (int32_t w = 0; w < workers; ++w) sum[w] += slots[w];
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

absl::StatusOr<int64_t> ReplicaBudget(const PlanRequest& request) {
  if (!request.replicas_per_worker) {
    return absl::InvalidArgumentError("replicas_per_worker: is missing; this policy plans under a budget of replicas");
  }
  const int32_t budget = *request.replicas_per_worker;
  if (budget < 0)
    return absl::InvalidArgumentError(absl::StrCat("replicas_per_worker: ", budget, "; must be at least 0"));
  const LoadMatrix& load = request.scenarios[0].load;
  const auto workers = static_cast<int64_t>(request.topology.workers.size());
  const int64_t once = static_cast<int64_t>(load.layers) * load.experts;
  const int64_t slots = (once + workers - 1) / workers + budget;
  for (const TopologyWorker& w : request.topology.workers) {
    const int64_t fit = w.capacity.slots - w.capacity.staging_slots;
    if (slots > fit) {
      return absl::FailedPreconditionError(absl::StrCat(
          "replicas_per_worker: ", budget, " beside one replica of each of ", load.layers, " x ", load.experts,
          " experts are ", slots, " slots a worker; worker '", w.name, "' has ", fit, " beside staging"));
    }
  }
  return budget * workers;
}

absl::StatusOr<std::vector<DispatchTable>> CraftPolicy::Place(const PlanRequest& request) const {
  BALLAST_ASSIGN_OR_RETURN(const int64_t budget, ReplicaBudget(request));
  const auto workers = static_cast<int32_t>(request.topology.workers.size());
  const LoadMatrix blend = Blend(request.scenarios);
  std::vector<int32_t> sizes = {0};
  for (int32_t size = 1; size <= workers && size <= static_cast<int64_t>(blend.experts) * (workers - 1); size *= 2) {
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
      const DispatchTable table = place(l, SpreadSlots(replicas, workers)[0]);
      cost[l].push_back(1 - Balancedness(WorkerLoads(table, blend.layer(l), request.topology)));
    }
  }
  std::vector<int32_t> replicas = AllocateReplicas(cost, sizes, budget);
  for (int32_t& r : replicas) r += blend.experts;
  const auto slots = SpreadSlots(replicas, workers);
  std::vector<DispatchTable> layers;
  for (int32_t l = 0; l < blend.layers; ++l) layers.push_back(place(l, slots[l]));
  return layers;
}

}  // namespace ballast
