#include "controller/planner/alias.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "controller/planner/eplb.h"
#include "controller/planner/groups.h"
#include "controller/planner/load.h"
#include "controller/planner/score.h"
#include "controller/planner/search.h"
#include "proto/base/check.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

// Changes of groups that are tried, an expert: about 10 ms a layer of 256.
constexpr int64_t kGroupProposals = 1500;
// Of equal-split search where workers differ and the construction does not come near the bound.
constexpr int64_t kSearchProposals = 200'000;

// What rounding leaves of a worker's capacity: no reason for a replica.
constexpr double kNothing = 1e-12;

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
  Sorted(std::span<const double> tokens, std::span<const int32_t> experts, size_t padding) {
    items_.assign(padding, {0, -1});
    items_.reserve(padding + experts.size());
    for (const int32_t e : experts) items_.push_back({tokens[e], e});
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

  // Item `i` keeps `rest` of its tokens, padding if none, and the items their order.
  void Reduce(size_t i, double rest) {
    const Item item = rest > 0 ? Item{rest, items_[i].expert} : Item{0, -1};
    const auto at = std::lower_bound(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(i), item);
    std::move_backward(at, items_.begin() + static_cast<std::ptrdiff_t>(i),
                       items_.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    *at = item;
  }

 private:
  std::vector<Item> items_;
};

struct Bin {
  int32_t worker;
  int32_t slots;
  double capacity;
};

// Fills the bins in turn; the last one takes what is left. False when that does not fit.
bool Fill(std::span<const double> tokens, std::span<const int32_t> experts, std::span<const Bin> bins, Packs& packs) {
  size_t room = 1;
  for (const Bin& bin : bins) room += bin.slots - 1;
  Sorted items(tokens, experts, room > experts.size() ? room - experts.size() : 0);
  for (const Bin& bin : bins.first(bins.size() - 1)) {
    std::vector<int32_t>& pack = packs[bin.worker];
    const size_t window = std::min(static_cast<size_t>(bin.slots) - 1, items.size() - 1);
    double sum = 0;
    size_t taken = 0;
    while (taken < window && sum + items[taken].tokens <= bin.capacity) sum += items[taken++].tokens;
    size_t first = 0;
    if (taken == window) {
      while (first + window + 1 < items.size() && sum + items[first + window].tokens < bin.capacity) {
        sum += items[first + window].tokens - items[first].tokens;
        ++first;
      }
    }
    // A piece of the item after those that go as a whole; all of it where even the heaviest do not suffice. The rest
    // moves to its place in the order, which is in front of that item or of all that go.
    const size_t next = first + taken;
    const double piece = std::min(bin.capacity - sum, items[next].tokens);
    const int32_t expert = items[next].expert;
    items.Take(first, taken, pack);
    if (piece > kNothing * bin.capacity) {
      if (expert >= 0) pack.push_back(expert);
      const double rest = items[first].tokens - piece;
      items.Reduce(first, rest > kNothing * bin.capacity ? rest : 0);
    }
  }
  const Bin& last = bins.back();
  double sum = 0;
  size_t left = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    sum += items[i].tokens;
    left += items[i].expert >= 0 ? 1 : 0;
  }
  if (left > static_cast<size_t>(last.slots) || sum > last.capacity * (1 + 1e-9)) return false;
  items.Take(0, items.size(), packs[last.worker]);
  return true;
}

// Fills the slots that are left.
void FillSlots(std::span<const double> tokens, std::span<const int32_t> slots, Packs& packs) {
  std::vector<int32_t> count(tokens.size());
  for (const auto& pack : packs) {
    for (const int32_t e : pack) ++count[e];
  }
  for (size_t w = 0; w < packs.size(); ++w) {
    auto& pack = packs[w];
    while (static_cast<int32_t>(pack.size()) < slots[w]) {
      int32_t hottest = -1;
      for (int32_t e = 0; e < static_cast<int32_t>(tokens.size()); ++e) {
        if (hottest >= 0 && tokens[e] * count[hottest] <= tokens[hottest] * count[e]) continue;
        if (std::find(pack.begin(), pack.end(), e) == pack.end()) hottest = e;
      }
      if (hottest < 0) break;
      pack.push_back(hottest);
      ++count[hottest];
    }
  }
}

std::vector<int32_t> All(size_t experts) {
  std::vector<int32_t> out(experts);
  std::iota(out.begin(), out.end(), 0);
  return out;
}

// Equal speeds, slots at most one apart.
Packs PlaceAlike(std::span<const double> tokens, std::span<const int32_t> slots) {
  const auto workers = static_cast<int32_t>(slots.size());
  const int32_t least = *std::min_element(slots.begin(), slots.end());
  std::vector<int32_t> order(workers);
  std::iota(order.begin(), order.end(), 0);
  std::stable_partition(order.begin(), order.end(), [&](int32_t w) { return slots[w] == least; });
  const auto large =
      static_cast<int32_t>(std::count_if(slots.begin(), slots.end(), [&](int32_t s) { return s > least; }));
  std::vector<ExpertGroup> groups = {{All(tokens.size()), workers, large}};
  const bool tight = std::ssize(tokens) > int64_t{workers} * (least - 1) + large + 1;
  if (tight) groups = GroupExperts(tokens, workers, least, large, kGroupProposals * std::ssize(tokens));
  Packs packs(workers);
  auto small_worker = order.begin();
  auto large_worker = order.end() - large;
  std::vector<Bin> bins;
  for (const ExpertGroup& group : groups) {
    double sum = 0;
    for (const int32_t e : group.experts) sum += tokens[e];
    bins.clear();
    for (int32_t i = 0; i < group.workers; ++i) {
      const int32_t w = i < group.workers - group.large ? *small_worker++ : *large_worker++;
      bins.push_back({w, slots[w], sum / group.workers});
    }
    const bool fits = Fill(tokens, group.experts, bins, packs);
    BALLAST_CHECK(fits) << group.experts.size() << " experts on " << group.workers << " workers of " << least
                        << " slots, " << group.large << " with one more";
  }
  FillSlots(tokens, slots, packs);
  if (!tight || large > 0) return packs;
  Packs eplb = EplbPacks(tokens, workers, least);
  return SolvedLevel(eplb, tokens) < SolvedLevel(packs, tokens) ? eplb : packs;
}

// Workers that differ.
Packs PlaceUnequal(std::span<const double> tokens, std::span<const int32_t> slots, std::span<const uint32_t> speed) {
  const std::vector<int32_t> experts = All(tokens.size());
  const auto workers = static_cast<int32_t>(slots.size());
  const auto speed_of = [&](int32_t w) { return speed.empty() ? 1.0 : static_cast<double>(speed[w]); };
  double speeds = 0;
  std::vector<int32_t> order;
  for (int32_t w = 0; w < workers; ++w) {
    speeds += speed_of(w);
    if (slots[w] > 0) order.push_back(w);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return speed_of(a) * (slots[b] - 1) > speed_of(b) * (slots[a] - 1); });
  const auto fill = [&](double level) -> std::optional<Packs> {
    std::vector<Bin> bins;
    for (const int32_t w : order) bins.push_back({w, slots[w], level * speed_of(w)});
    Packs packs(workers);
    if (!Fill(tokens, experts, bins, packs)) return std::nullopt;
    return packs;
  };
  Packs best = PackGreedily(tokens, slots, speed);
  const double total = std::accumulate(tokens.begin(), tokens.end(), 0.0);
  if (total == 0) return best;
  const double least = total / speeds / UpperBound(tokens, slots, speed);
  double level = SolvedLevel(best, tokens, speed);
  const auto consider = [&](Packs packs) {
    FillSlots(tokens, slots, packs);
    const double solved = SolvedLevel(packs, tokens, speed);
    if (solved < level) {
      level = solved;
      best = std::move(packs);
    }
  };
  // Whether a level can be filled does not quite grow with it; near enough for a start.
  constexpr int kSteps = 12;
  double low = least;
  double high = level;
  std::optional<Packs> filled = fill(low);
  if (!filled) {
    for (int i = 0; i < kSteps; ++i) {
      const double middle = (low + high) / 2;
      if (auto packs = fill(middle)) {
        filled = std::move(packs);
        high = middle;
      } else {
        low = middle;
      }
    }
  }
  if (filled) consider(*std::move(filled));
  if (level > least * 1.001) {
    LayerProblem problem;
    problem.tokens.emplace_back(tokens.begin(), tokens.end());
    problem.speed.assign(speed.begin(), speed.end());
    Packs packs = PackGreedily(tokens, slots, speed);
    ImprovePacks(problem, {.proposals = kSearchProposals}, packs);
    consider(std::move(packs));
  }
  return best;
}

}  // namespace

double SolvedLevel(const Packs& packs, std::span<const double> tokens, std::span<const uint32_t> speed) {
  const DispatchTable table = ToTable(packs, static_cast<int32_t>(tokens.size()));
  ShareSolver solver(table, static_cast<int32_t>(packs.size()), speed);
  const std::vector<int64_t> whole = ToIntegers(tokens);
  std::vector<int64_t> flow(table.num_replicas());
  const auto busiest = static_cast<double>(solver.Solve(whole, flow));
  const auto scale = static_cast<double>(std::accumulate(whole.begin(), whole.end(), int64_t{0}));
  return scale == 0 ? 0 : busiest / scale * std::accumulate(tokens.begin(), tokens.end(), 0.0);
}

void SolveWeights(std::span<const double> tokens, std::span<const uint32_t> speed, int32_t workers,
                  DispatchTable& table) {
  ShareSolver solver(table, workers, speed);
  std::vector<int64_t> flow(table.num_replicas());
  solver.Solve(ToIntegers(tokens), flow);
  FlowToWeights(flow, table);
}

Packs PlaceLevel(std::span<const double> tokens, std::span<const int32_t> slots, std::span<const uint32_t> speed) {
  const auto experts = static_cast<int32_t>(tokens.size());
  const auto workers = static_cast<int32_t>(slots.size());
  std::vector<int32_t> used(slots.begin(), slots.end());
  for (int32_t& s : used) s = std::min(s, experts);
  BALLAST_CHECK(std::accumulate(used.begin(), used.end(), int64_t{0}) >= experts &&
                (speed.empty() || std::ssize(speed) == workers))
      << experts << " experts, " << workers << " workers";
  const auto [least, most] = std::minmax_element(used.begin(), used.end());
  const bool alike = std::adjacent_find(speed.begin(), speed.end(), std::not_equal_to<>()) == speed.end();
  if (!alike || *most > *least + 1 || *least == 0) return PlaceUnequal(tokens, used, speed);
  if (*most == 1) return PackGreedily(tokens, used);
  return PlaceAlike(tokens, used);
}

Packs PlaceLevel(std::span<const double> tokens, int32_t workers, int32_t slots) {
  return PlaceLevel(tokens, std::vector<int32_t>(workers, slots));
}

}  // namespace ballast
