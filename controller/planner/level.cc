#include "controller/planner/level.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/score.h"
#include "controller/planner/search.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

// An expert with what is left of its tokens; -1: padding. Sorted by tokens, then expert.
struct Item {
  double tokens;
  int32_t expert;
  friend bool operator<(const Item& a, const Item& b) {
    return a.tokens != b.tokens ? a.tokens < b.tokens : a.expert < b.expert;
  }
};

// Items in order, as few moves of memory as can be.
class Sorted {
 public:
  Sorted(std::span<const double> tokens, size_t size) {
    items_.reserve(size);
    for (size_t i = tokens.size(); i < size; ++i) items_.push_back({0, -1});
    for (size_t e = 0; e < tokens.size(); ++e) items_.push_back({tokens[e], static_cast<int32_t>(e)});
    std::sort(items_.begin(), items_.end());
  }
  size_t size() const { return items_.size(); }
  const Item& operator[](size_t i) const { return items_[i]; }

  // The `count` items from `first` on go to `pack`.
  void Take(size_t first, size_t count, std::vector<int32_t>& pack) {
    for (size_t i = first; i < first + count; ++i) {
      if (items_[i].expert >= 0) pack.push_back(items_[i].expert);
    }
    items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(first),
                 items_.begin() + static_cast<std::ptrdiff_t>(first + count));
  }

  // Item `i` gives `piece` of its tokens away and keeps the order.
  void Reduce(size_t i, double piece) {
    Item item = items_[i];
    item.tokens = std::max(0.0, item.tokens - piece);
    const auto at = std::lower_bound(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(i), item);
    std::move_backward(at, items_.begin() + static_cast<std::ptrdiff_t>(i),
                       items_.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    *at = item;
  }

 private:
  std::vector<Item> items_;
};

// experts <= workers * (slots - 1).
Packs PlaceAlias(std::span<const double> tokens, int32_t workers, int32_t slots) {
  const size_t window = static_cast<size_t>(slots) - 1;
  Sorted items(tokens, static_cast<size_t>(workers) * window);
  const double mean = std::accumulate(tokens.begin(), tokens.end(), 0.0) / workers;
  Packs packs(workers);
  for (int32_t w = 0; w + 1 < workers; ++w) {
    size_t first = 0;
    double sum = 0;
    for (size_t i = 0; i < window; ++i) sum += items[i].tokens;
    while (first + window + 1 < items.size() && sum + items[first + window].tokens < mean) {
      sum += items[first + window].tokens - items[first].tokens;
      ++first;
    }
    const double piece = std::min(mean - sum, items[first + window].tokens);
    const int32_t next = items[first + window].expert;
    if (piece > 0) {
      packs[w].push_back(next);
      items.Reduce(first + window, piece);
      // The reduced item may have moved in front of its window, or into it.
      size_t at = first;
      while (at <= first + window && items[at].expert != next) ++at;
      if (at <= first + window) {
        items.Take(at + 1, first + window - at, packs[w]);
        items.Take(first, at - first, packs[w]);
      } else {
        items.Take(first + 1, window, packs[w]);
      }
    } else {
      items.Take(first, window, packs[w]);
    }
  }
  items.Take(0, items.size(), packs[workers - 1]);
  return packs;
}

// Fills workers up to `level`. False when the slots do not suffice.
bool FillTo(double level, std::span<const double> tokens, int32_t workers, int32_t slots, Packs& packs) {
  Sorted items(tokens, tokens.size());
  packs.assign(workers, {});
  for (int32_t w = 0; w < workers && items.size() > 0; ++w) {
    std::vector<int32_t>& pack = packs[w];
    const size_t last = items.size() - 1;
    const Item heaviest = items[last];
    const size_t window = std::min(static_cast<size_t>(slots) - 1, last);
    // The lightest window, and then the heaviest that leaves room for all of the heaviest item.
    double sum = 0;
    for (size_t i = 0; i < window; ++i) sum += items[i].tokens;
    if (heaviest.tokens + sum <= level) {
      size_t first = 0;
      while (first + window < last &&
             heaviest.tokens + sum + items[first + window].tokens - items[first].tokens <= level) {
        sum += items[first + window].tokens - items[first].tokens;
        ++first;
      }
      items.Take(last, 1, pack);
      items.Take(first, window, pack);
    } else {
      const double piece = level - sum;
      if (piece <= 0) return false;
      pack.push_back(heaviest.expert);
      items.Reduce(last, piece);
      // Its place may now be within the window that goes.
      size_t taken = 0;
      for (size_t i = 0; taken < window && i < items.size();) {
        if (items[i].expert == heaviest.expert) {
          ++i;
          continue;
        }
        items.Take(i, 1, pack);
        ++taken;
      }
    }
  }
  return items.size() == 0;
}

// Fills the slots that are left.
void FillSlots(std::span<const double> tokens, int32_t slots, Packs& packs) {
  std::vector<int32_t> count(tokens.size());
  for (const auto& pack : packs) {
    for (const int32_t e : pack) ++count[e];
  }
  for (auto& pack : packs) {
    while (static_cast<int32_t>(pack.size()) < slots) {
      int32_t hottest = -1;
      for (int32_t e = 0; e < static_cast<int32_t>(tokens.size()); ++e) {
        if (std::find(pack.begin(), pack.end(), e) != pack.end()) continue;
        if (hottest < 0 || tokens[e] * count[hottest] > tokens[hottest] * count[e]) hottest = e;
      }
      if (hottest < 0) break;
      pack.push_back(hottest);
      ++count[hottest];
    }
  }
}

// Tokens of the busiest worker, with shares solved.
double SolvedLevel(const Packs& packs, std::span<const double> tokens) {
  const DispatchTable table = ToTable(packs, static_cast<int32_t>(tokens.size()));
  ShareSolver solver(table, static_cast<int32_t>(packs.size()));
  const std::vector<int64_t> whole = ToIntegers(tokens);
  std::vector<int64_t> flow(table.num_replicas());
  const auto busiest = static_cast<double>(solver.Solve(whole, flow));
  const auto scale = static_cast<double>(std::accumulate(whole.begin(), whole.end(), int64_t{0}));
  return scale == 0 ? 0 : busiest / scale * std::accumulate(tokens.begin(), tokens.end(), 0.0);
}

// Levels from the lower bound up, and EPLB's placement where none of them is better.
Packs PlaceByThreshold(std::span<const double> tokens, int32_t workers, int32_t slots) {
  constexpr int kLevels = 48;
  const std::vector<float> weights(tokens.begin(), tokens.end());
  const std::vector<int32_t> physical = RebalanceExperts(weights, slots * workers, 1, 1, workers);
  Packs best(workers);
  for (int32_t p = 0; p < slots * workers; ++p) best[p / slots].push_back(physical[p]);
  MakeDistinct(tokens, best);
  const double eplb = SolvedLevel(best, tokens);
  const double mean = std::accumulate(tokens.begin(), tokens.end(), 0.0) / workers;
  const double least = mean / UpperBound(tokens, slots * workers, workers);
  Packs packs;
  for (int i = 0; i < kLevels; ++i) {
    if (!FillTo(least + (eplb - least) * i / kLevels, tokens, workers, slots, packs)) continue;
    FillSlots(tokens, slots, packs);
    if (SolvedLevel(packs, tokens) < eplb) return packs;
  }
  return best;
}

}  // namespace

Packs PlaceLevel(std::span<const double> tokens, int32_t workers, int32_t slots) {
  const auto experts = static_cast<int32_t>(tokens.size());
  BALLAST_CHECK(slots >= 1 && slots <= experts && static_cast<int64_t>(slots) * workers >= experts)
      << experts << " experts, " << workers << " workers of " << slots << " slots";
  Packs packs = experts <= static_cast<int64_t>(workers) * (slots - 1) ? PlaceAlias(tokens, workers, slots)
                                                                       : PlaceByThreshold(tokens, workers, slots);
  FillSlots(tokens, slots, packs);
  return packs;
}

absl::StatusOr<std::vector<DispatchTable>> CostAwarePolicy::Place(const PlanRequest& request) const {
  const auto workers = static_cast<int32_t>(request.topology.workers.size());
  const LoadMatrix blend = Blend(request.scenarios);
  const bool equal_split = request.scenarios.size() > 1 || split_ == Split::kEqual;
  const auto search = [&](int32_t l, std::span<const int32_t> slots, int32_t proposals) {
    std::vector<std::vector<double>> loads;
    for (const Scenario& s : request.scenarios) loads.emplace_back(s.load.layer(l).begin(), s.load.layer(l).end());
    Packs packs = PackGreedily(blend.layer(l), slots);
    ImprovePacks(loads, {.proposals = proposals}, packs);
    return packs;
  };
  std::vector<Packs> layers;
  if (request.replicas_per_worker) {
    BALLAST_ASSIGN_OR_RETURN(const int64_t budget, ReplicaBudget(request));
    const std::vector<int32_t> sizes =
        ReplicaSizes(static_cast<int32_t>(std::min<int64_t>(2 * workers, int64_t{blend.experts} * (workers - 1))));
    std::vector<std::vector<double>> cost(blend.layers);
    for (int32_t l = 0; l < blend.layers; ++l) {
      for (const int32_t size : sizes) {
        const int32_t replicas[] = {blend.experts + size};
        const Packs packs = search(l, SpreadSlots(replicas, workers)[0], proposals_ / 10);
        const DispatchTable table = ToTable(packs, blend.experts);
        double most = 0;
        for (const Scenario& s : request.scenarios) {
          most = std::max(most, 1 / Balancedness(WorkerLoadsEqualSplit(table, s.load.layer(l), request.topology)));
        }
        // A search cut short may do worse with more: fewer would do then.
        cost[l].push_back(cost[l].empty() ? most : std::min(most, cost[l].back()));
      }
    }
    std::vector<int32_t> replicas = AllocateReplicas(cost, sizes, budget);
    for (int32_t& r : replicas) r += blend.experts;
    const auto slots = SpreadSlots(replicas, workers);
    for (int32_t l = 0; l < blend.layers; ++l) layers.push_back(search(l, slots[l], proposals_));
  } else {
    BALLAST_ASSIGN_OR_RETURN(const int32_t slots, SlotsPerLayer(request));
    const std::vector<int32_t> equal(workers, slots);
    for (int32_t l = 0; l < blend.layers; ++l) {
      layers.push_back(equal_split ? search(l, equal, proposals_) : PlaceLevel(blend.layer(l), workers, slots));
    }
  }
  std::vector<DispatchTable> current;
  if (request.current) current = Onto(*request.current, request.topology);
  std::vector<DispatchTable> tables;
  for (int32_t l = 0; l < blend.layers; ++l) {
    // Packs of different sizes belong to the workers whose slots they were made for.
    const bool alike = std::all_of(layers[l].begin(), layers[l].end(),
                                   [&](const auto& pack) { return pack.size() == layers[l][0].size(); });
    if (!current.empty() && alike) layers[l] = Relabel(layers[l], current[l], workers);
    tables.push_back(ToTable(layers[l], blend.experts));
    if (equal_split) tables.back().weight.assign(tables.back().weight.size(), 1);
  }
  return tables;
}

}  // namespace ballast
