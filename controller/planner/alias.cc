#include "controller/planner/alias.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "controller/planner/eplb.h"
#include "controller/planner/groups.h"
#include "controller/planner/score.h"
#include "controller/planner/search.h"
#include "proto/base/check.h"

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
    items_.reserve(padding + experts.size());
    items_.assign(padding, {0, -1});
    for (const int32_t e : experts) items_.push_back({tokens[e], e});
    std::sort(items_.begin() + static_cast<std::ptrdiff_t>(padding), items_.end());
  }
  size_t size() const { return items_.size(); }
  const Item& operator[](size_t i) const { return items_[i]; }

  // Takes out the `count` items from `first` on, and of the one after them all but `rest` of its tokens (padding if
  // that is 0). What is left of it goes to its place in the order, which is returned.
  size_t Take(size_t first, size_t count, double rest) {
    const Item item = rest > 0 ? Item{rest, items_[first + count].expert} : Item{0, -1};
    const auto begin = items_.begin();
    const auto gap = begin + static_cast<std::ptrdiff_t>(first);
    // Mostly in front of those that go; behind some of them where only the heaviest are left.
    const auto at = std::lower_bound(begin, gap, item);
    std::move_backward(at, gap, gap + 1);
    *at = item;
    items_.erase(gap + 1, gap + 1 + static_cast<std::ptrdiff_t>(count));
    return static_cast<size_t>(at - begin);
  }
  void Take(size_t first, size_t count) {
    const auto from = items_.begin() + static_cast<std::ptrdiff_t>(first);
    items_.erase(from, from + static_cast<std::ptrdiff_t>(count));
  }

 private:
  std::vector<Item> items_;
};

// What the workers hold: experts, and the tokens of them that go there.
class Layout {
 public:
  // Room for `slots` [workers] on each.
  explicit Layout(std::span<const int32_t> slots) : first_(slots.size() + 1), size_(slots.size()) {
    std::partial_sum(slots.begin(), slots.end(), first_.begin() + 1);
    items_.resize(first_.back());
  }
  // Padding is left out.
  void Add(int32_t worker, Item item) {
    if (item.expert >= 0) items_[first_[worker] + size_[worker]++] = item;
  }
  int32_t workers() const { return static_cast<int32_t>(size_.size()); }
  std::span<const Item> pack(int32_t worker) const { return std::span(items_).subspan(first_[worker], size_[worker]); }
  int32_t room(int32_t worker) const { return first_[worker + 1] - first_[worker] - size_[worker]; }
  bool Holds(int32_t worker, int32_t expert) const {
    return std::any_of(pack(worker).begin(), pack(worker).end(), [&](const Item& i) { return i.expert == expert; });
  }

  Packs ToPacks() const {
    Packs packs(workers());
    for (int32_t w = 0; w < workers(); ++w) {
      packs[w].reserve(pack(w).size());
      for (const Item& item : pack(w)) packs[w].push_back(item.expert);
    }
    return packs;
  }

  // With the tokens as weights, in parts of 2^30 of an expert's.
  DispatchTable ToTable(int32_t experts) const {
    constexpr double kScale = 1 << 30;
    DispatchTable table;
    table.begin.assign(experts + 1, 0);
    std::vector<double> sum(experts);
    for (int32_t w = 0; w < workers(); ++w) {
      for (const Item& item : pack(w)) {
        ++table.begin[item.expert + 1];
        sum[item.expert] += item.tokens;
      }
    }
    std::partial_sum(table.begin.begin(), table.begin.end(), table.begin.begin());
    table.rank.resize(table.begin[experts]);
    table.weight.assign(table.begin[experts], 1);
    std::vector<int32_t> next(table.begin.begin(), table.begin.end() - 1);
    for (int32_t w = 0; w < workers(); ++w) {
      for (const Item& item : pack(w)) {
        const int32_t r = next[item.expert]++;
        table.rank[r] = w;
        const bool shared = table.begin[item.expert + 1] - table.begin[item.expert] > 1;
        if (shared && item.tokens > 0) {
          table.weight[r] = static_cast<uint32_t>(std::max(1.0, item.tokens / sum[item.expert] * kScale));
        }
      }
    }
    return table;
  }

 private:
  std::vector<int32_t> first_;  // [workers + 1] into items_
  std::vector<int32_t> size_;   // [workers]
  std::vector<Item> items_;
};

struct Bin {
  int32_t worker;
  int32_t slots;
  double capacity;
};

// Fills the bins in turn; the last one takes what is left. False when that does not fit.
bool Fill(std::span<const double> tokens, std::span<const int32_t> experts, std::span<const Bin> bins, Layout& layout) {
  size_t room = 1;
  for (const Bin& bin : bins) room += bin.slots - 1;
  Sorted items(tokens, experts, room > experts.size() ? room - experts.size() : 0);
  // Windows before it are known to stay below the capacity, as long as that and the windows' size stay what they are.
  size_t start = 0;
  const Bin* before = nullptr;
  for (const Bin& bin : bins.first(bins.size() - 1)) {
    if (before == nullptr || before->slots != bin.slots || before->capacity != bin.capacity) start = 0;
    before = &bin;
    const size_t window = std::min(static_cast<size_t>(bin.slots) - 1, items.size() - 1);
    start = std::min(start, items.size() - 1 - window);
    double sum = 0;
    size_t taken = 0;
    // From a later start all of a window fit, but for rounding.
    while (taken < window && (start > 0 || sum + items[taken].tokens <= bin.capacity)) {
      sum += items[start + taken++].tokens;
    }
    size_t first = start;
    if (taken == window) {
      while (first + window + 1 < items.size() && sum + items[first + window].tokens < bin.capacity) {
        sum += items[first + window].tokens - items[first].tokens;
        ++first;
      }
    }
    // A piece of the item after those that go as a whole; all of it where even the heaviest do not suffice. The rest
    // moves to its place in the order, which is in front of that item or of all that go.
    const Item next = items[first + taken];
    const double piece = std::min(bin.capacity - sum, next.tokens);
    for (size_t i = first; i < first + taken; ++i) layout.Add(bin.worker, items[i]);
    size_t changed = first;
    if (piece > kNothing * bin.capacity) {
      layout.Add(bin.worker, {piece, next.expert});
      const double rest = next.tokens - piece;
      changed = items.Take(first, taken, rest > kNothing * bin.capacity ? rest : 0);
    } else {
      items.Take(first, taken);
    }
    start = changed - std::min(changed, window);
  }
  const Bin& last = bins.back();
  double sum = 0;
  size_t left = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    sum += items[i].tokens;
    left += items[i].expert >= 0 ? 1 : 0;
  }
  // The bins before it may each have rounded what they left the same way.
  double total = 0;
  for (const Bin& bin : bins) total += bin.capacity;
  const double rounding = static_cast<double>(bins.size()) * std::numeric_limits<double>::epsilon() * total;
  if (left > static_cast<size_t>(last.slots) || sum > last.capacity * (1 + 1e-9) + rounding) return false;
  for (size_t i = 0; i < items.size(); ++i) layout.Add(last.worker, items[i]);
  return true;
}

// Fills the slots that are left.
void FillSlots(std::span<const double> tokens, Layout& layout) {
  int64_t room = 0;
  for (int32_t w = 0; w < layout.workers(); ++w) room += layout.room(w);
  if (room == 0) return;
  struct Expert {
    double part;  // tokens a replica
    int32_t count;
    int32_t expert;
    // Without load experts take turns.
    bool operator<(const Expert& other) const {
      if (part != other.part) return part < other.part;
      return count != other.count ? count > other.count : expert > other.expert;
    }
  };
  std::vector<int32_t> count(tokens.size());
  for (int32_t w = 0; w < layout.workers(); ++w) {
    for (const Item& item : layout.pack(w)) ++count[item.expert];
  }
  std::vector<Expert> hottest;
  for (size_t e = 0; e < tokens.size(); ++e) {
    hottest.push_back({tokens[e] / count[e], count[e], static_cast<int32_t>(e)});
  }
  std::make_heap(hottest.begin(), hottest.end());
  std::vector<Expert> held;  // taken from the heap, for the worker has them
  for (int32_t w = 0; w < layout.workers(); ++w) {
    while (layout.room(w) > 0 && !hottest.empty()) {
      std::pop_heap(hottest.begin(), hottest.end());
      const int32_t e = hottest.back().expert;
      hottest.pop_back();
      if (!layout.Holds(w, e)) {
        layout.Add(w, {0, e});
        ++count[e];
      }
      held.push_back({tokens[e] / count[e], count[e], e});
    }
    for (const Expert& expert : held) {
      hottest.push_back(expert);
      std::push_heap(hottest.begin(), hottest.end());
    }
    held.clear();
  }
}

std::vector<int32_t> All(size_t experts) {
  std::vector<int32_t> out(experts);
  std::iota(out.begin(), out.end(), 0);
  return out;
}

// Equal speeds, slots at most one apart: whether one group of all workers will do.
bool WindowsSuffice(int64_t experts, std::span<const int32_t> slots) {
  return experts <= std::accumulate(slots.begin(), slots.end(), int64_t{0}) - std::ssize(slots) + 1;
}

// Equal speeds, slots at most one apart, of `least` and more.
Layout FillAlike(std::span<const double> tokens, std::span<const int32_t> slots) {
  const auto workers = static_cast<int32_t>(slots.size());
  const int32_t least = *std::min_element(slots.begin(), slots.end());
  std::vector<int32_t> order(workers);
  std::iota(order.begin(), order.end(), 0);
  std::stable_partition(order.begin(), order.end(), [&](int32_t w) { return slots[w] == least; });
  const auto large =
      static_cast<int32_t>(std::count_if(slots.begin(), slots.end(), [&](int32_t s) { return s > least; }));
  std::vector<ExpertGroup> groups = {{All(tokens.size()), workers, large}};
  if (!WindowsSuffice(std::ssize(tokens), slots)) {
    groups = GroupExperts(tokens, workers, least, large, kGroupProposals * std::ssize(tokens));
  }
  Layout layout(slots);
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
    const bool fits = Fill(tokens, group.experts, bins, layout);
    BALLAST_CHECK(fits) << group.experts.size() << " experts on " << group.workers << " workers of " << least
                        << " slots, " << group.large << " with one more";
  }
  FillSlots(tokens, layout);
  return layout;
}

Packs PlaceAlike(std::span<const double> tokens, std::span<const int32_t> slots) {
  Packs packs = FillAlike(tokens, slots).ToPacks();
  const bool equal = std::adjacent_find(slots.begin(), slots.end(), std::not_equal_to<>()) == slots.end();
  if (WindowsSuffice(std::ssize(tokens), slots) || !equal) return packs;
  Packs eplb = EplbPacks(tokens, static_cast<int32_t>(slots.size()), slots[0]);
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
  const auto fill = [&](double level) -> std::optional<Layout> {
    std::vector<Bin> bins;
    for (const int32_t w : order) bins.push_back({w, slots[w], level * speed_of(w)});
    Layout layout(slots);
    if (!Fill(tokens, experts, bins, layout)) return std::nullopt;
    return layout;
  };
  Packs best = PackGreedily(tokens, slots, speed);
  const double total = std::accumulate(tokens.begin(), tokens.end(), 0.0);
  if (total == 0) return best;
  const double least = total / speeds / UpperBound(tokens, slots, speed);
  double level = SolvedLevel(best, tokens, speed);
  const auto consider = [&](Packs packs) {
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
  std::optional<Layout> filled = fill(low);
  if (!filled) {
    for (int i = 0; i < kSteps; ++i) {
      const double middle = (low + high) / 2;
      if (auto layout = fill(middle)) {
        filled = std::move(layout);
        high = middle;
      } else {
        low = middle;
      }
    }
  }
  if (filled) {
    FillSlots(tokens, *filled);
    consider(filled->ToPacks());
  }
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
  const double balancedness = LayerSolver(static_cast<int32_t>(packs.size()), speed).Solve(table, tokens);
  const double speeds =
      speed.empty() ? static_cast<double>(packs.size()) : std::accumulate(speed.begin(), speed.end(), 0.0);
  return std::accumulate(tokens.begin(), tokens.end(), 0.0) / speeds / balancedness;
}

void SolveWeights(std::span<const double> tokens, std::span<const uint32_t> speed, int32_t workers,
                  DispatchTable& table) {
  LayerSolver(workers, speed).SolveWeights(tokens, table);
}

namespace {

// Slots that are of use; there must be enough.
std::vector<int32_t> UsedSlots(std::span<const double> tokens, std::span<const int32_t> slots,
                               std::span<const uint32_t> speed) {
  const auto experts = static_cast<int32_t>(tokens.size());
  std::vector<int32_t> used(slots.begin(), slots.end());
  for (int32_t& s : used) s = std::min(s, experts);
  BALLAST_CHECK(std::accumulate(used.begin(), used.end(), int64_t{0}) >= experts &&
                (speed.empty() || speed.size() == slots.size()))
      << experts << " experts, " << slots.size() << " workers";
  return used;
}

// Equal speeds, slots at most one apart and none without.
bool Alike(std::span<const int32_t> slots, std::span<const uint32_t> speed) {
  const auto [least, most] = std::minmax_element(slots.begin(), slots.end());
  return *least > 0 && *most <= *least + 1 &&
         std::adjacent_find(speed.begin(), speed.end(), std::not_equal_to<>()) == speed.end();
}

}  // namespace

Packs PlaceLevel(std::span<const double> tokens, std::span<const int32_t> slots, std::span<const uint32_t> speed) {
  const std::vector<int32_t> used = UsedSlots(tokens, slots, speed);
  if (!Alike(used, speed)) return PlaceUnequal(tokens, used, speed);
  if (*std::max_element(used.begin(), used.end()) == 1) return PackGreedily(tokens, used);
  return PlaceAlike(tokens, used);
}

Packs PlaceLevel(std::span<const double> tokens, int32_t workers, int32_t slots) {
  return PlaceLevel(tokens, std::vector<int32_t>(workers, slots));
}

DispatchTable LevelTable(std::span<const double> tokens, std::span<const int32_t> slots,
                         std::span<const uint32_t> speed) {
  const auto experts = static_cast<int32_t>(tokens.size());
  const std::vector<int32_t> used = UsedSlots(tokens, slots, speed);
  if (Alike(used, speed) && WindowsSuffice(experts, used)) return FillAlike(tokens, used).ToTable(experts);
  return ToTable(PlaceLevel(tokens, slots, speed), experts);
}

}  // namespace ballast
