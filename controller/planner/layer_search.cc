#include "controller/planner/layer_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "proto/base/check.h"

namespace ballast {
namespace {

// Workers that are looked at from the heavy end of a layer where there are many.
constexpr size_t kHeaviest = 24;
// How much it counts that fewer workers are as busy as the busiest.
constexpr double kCrowd = 1e-3;
// What one more arrival counts where experts are restored, of a level worker's load to the 16th power: as much as a
// load that is .006 % higher there.
constexpr double kArrivalCost = 1e-3;
// Of an expert with more replicas what the others gain where one leaves is summed once for all of them.
constexpr int32_t kManyHolders = 64;

double Power16(double x) {
  x *= x;
  x *= x;
  x *= x;
  return x * x;
}

}  // namespace

Edit MakeEdit(std::initializer_list<Change::Place> arrive, std::initializer_list<Change::Place> leave) {
  Edit edit;
  for (const Change::Place& p : arrive) edit.arrive[edit.arrivals++] = p;
  for (const Change::Place& p : leave) edit.leave[edit.leaves++] = p;
  return edit;
}

Room::Room(const Placement& placement, const Topology& topology, int32_t slots_per_worker) {
  std::vector<int32_t> used(topology.workers.size());
  for (const Replica& r : placement.replicas) ++used[r.worker];
  for (size_t w = 0; w < used.size(); ++w) {
    const SlotCapacity& capacity = topology.workers[w].capacity;
    // Without staging slots the last free one is what others move through.
    int32_t limit = capacity.slots - std::max(1, capacity.staging_slots);
    if (slots_per_worker > 0) limit = std::min(limit, slots_per_worker);
    free.push_back(limit - used[w]);
    closed.push_back(used[w] >= capacity.slots);
  }
}

LayerSearch::LayerSearch(const DispatchTable& table, std::vector<std::span<const double>> tokens,
                         const Topology& topology, Split split, int32_t slots, std::span<const double> burstiness)
    : tokens_(std::move(tokens)),
      workers_(static_cast<int32_t>(topology.workers.size())),
      experts_(table.num_experts()),
      scenarios_(tokens_.size()),
      split_(split),
      slots_(slots),
      table_{table.begin, table.rank, {}},
      packs_(workers_),
      touched_experts_(experts_),
      load_(scenarios_ * workers_),
      busiest_(scenarios_),
      heaviest_(scenarios_),
      powers_(scenarios_ * workers_),
      delta_(scenarios_ * workers_),
      marked_(workers_) {
  bool alike = true;
  double speed = 0;
  for (const TopologyWorker& w : topology.workers) {
    speed_.push_back(w.speed);
    slowness_.push_back(1.0 / w.speed);
    speeds_.push_back(w.speed);
    speed += w.speed;
    alike &= w.speed == topology.workers[0].speed;
  }
  if (alike) speeds_.clear();
  for (const auto& layer : tokens_) {
    level_.push_back(std::accumulate(layer.begin(), layer.end(), 0.0) / speed);
  }
  for (int32_t e = 0; e < experts_; ++e) {
    for (const int32_t w : Holders(e)) packs_[w].push_back(e);
  }
  if (split_ == Split::kSolved) {
    BALLAST_CHECK(scenarios_ == 1) << scenarios_ << " scenarios";
    whole_ = ToIntegers(tokens_[0]);
    const int64_t sum = std::accumulate(whole_.begin(), whole_.end(), int64_t{0});
    if (sum > 0) unit_ = level_[0] * speed / static_cast<double>(sum);
    if (alike) unit_ /= speed_[0];
    mean_ = static_cast<double>(sum) / (alike ? workers_ : speed);
  }
  if (split_ == Split::kSolved) {
    SolveShares();
  } else {
    if (std::any_of(burstiness.begin(), burstiness.end(), [](double b) { return b > 0; })) {
      for (size_t s = 0; s < scenarios_; ++s) {
        const double squares = SumOfSquares(table_, tokens_[s], speed_, /*equal=*/true);
        bursts_.emplace_back(burstiness[s], squares, level_[s], workers_);
      }
    }
    order_.resize(workers_);
    std::iota(order_.begin(), order_.end(), 0);
    SplitEqually(order_);
  }
}

bool LayerSearch::IsDecided(const Change::Place& place) const {
  return std::find(decided_.begin(), decided_.end(), place) != decided_.end();
}

void LayerSearch::MarkDecided(std::span<const Change::Place> places) {
  decided_.insert(decided_.end(), places.begin(), places.end());
  for (const Change::Place& place : places) touched_experts_[place.expert] = 1;
}

void LayerSearch::Decide(const Change& change) {
  MarkDecided(change.arrivals);
  MarkDecided(change.departures);
}

DispatchTable LayerSearch::Table() const {
  DispatchTable table = table_;
  table.weight.assign(table.rank.size(), 1);
  return table;
}

void LayerSearch::Restructure(std::span<const Change::Place> arrive, std::span<const Change::Place> leave) {
  const auto shift = [&](int32_t e, int32_t by) {
    for (int32_t& begin : std::span(table_.begin).subspan(e + 1)) begin += by;
  };
  for (const auto& [e, w] : leave) {
    table_.rank.erase(Place(e, w));
    shift(e, -1);
    packs_[w].erase(std::find(packs_[w].begin(), packs_[w].end(), e));
  }
  for (const auto& [e, w] : arrive) {
    table_.rank.insert(Place(e, w), w);
    shift(e, 1);
    packs_[w].insert(std::lower_bound(packs_[w].begin(), packs_[w].end(), e), e);
  }
}

void LayerSearch::Apply(const Edit& edit) {
  const std::span arrive(edit.arrive.data(), edit.arrivals);
  const std::span leave(edit.leave.data(), edit.leaves);
  Restructure(arrive, leave);
  MarkDecided(arrive);
  MarkDecided(leave);
  if (chosen_.known && chosen_.edit == edit) {
    Use(chosen_);
  } else {
    Refresh(edit);
  }
  chosen_.known = false;
}

void LayerSearch::Undo(const Edit& edit) {
  Restructure(std::span(edit.leave.data(), edit.leaves), std::span(edit.arrive.data(), edit.arrivals));
  decided_.resize(decided_.size() - edit.arrivals - edit.leaves);
  chosen_.known = false;
  Refresh(edit);
}

void LayerSearch::Refresh(const Edit& edit) {
  if (split_ == Split::kSolved) {
    SolveShares();
    return;
  }
  for (int32_t i = 0; i < edit.arrivals + edit.leaves; ++i) {
    const auto& [e, w] = i < edit.arrivals ? edit.arrive[i] : edit.leave[i - edit.arrivals];
    Touch(w);
    for (const int32_t other : Holders(e)) Touch(other);
  }
  SplitEqually(touched_);
  for (const int32_t w : touched_) marked_[w] = false;
  touched_.clear();
}

void LayerSearch::SplitEqually(std::span<const int32_t> workers) {
  for (size_t s = 0; s < scenarios_; ++s) {
    double* load = &load_[s * workers_];
    for (const int32_t w : workers) {
      double sum = 0;
      if (bursty()) {
        for (const int32_t e : packs_[w]) sum += BurstPart(s, e, w, Count(e));
        load[w] = sum;
        continue;
      }
      for (const int32_t e : packs_[w]) sum += tokens_[s][e] / Count(e);
      load[w] = sum * slowness_[w];
    }
    const std::span<const double> loads(load, workers_);
    if (bursty()) {
      busiest_[s] = level_[s] == 0 ? 0 : bursts_[s].Busiest(loads);
    } else {
      busiest_[s] = *std::max_element(loads.begin(), loads.end());
    }
  }
  ranked_ = false;
}

void LayerSearch::SortByLoad(size_t s) {
  const double* load = &load_[s * workers_];
  const auto before = [&](int32_t a, int32_t b) { return load[a] != load[b] ? load[a] > load[b] : a < b; };
  std::vector<int32_t>& heaviest = heaviest_[s];
  if (workers_ > kSortedWorkers) {
    order_.resize(workers_);
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(order_.begin(), order_.begin() + kHeaviest, order_.end(), before);
    heaviest.assign(order_.begin(), order_.begin() + kHeaviest);
    return;
  }
  if (heaviest.empty()) {
    heaviest.resize(workers_);
    std::iota(heaviest.begin(), heaviest.end(), 0);
    std::sort(heaviest.begin(), heaviest.end(), before);
    return;
  }
  // Few have changed since.
  for (size_t i = 1; i < heaviest.size(); ++i) {
    const int32_t w = heaviest[i];
    size_t at = i;
    for (; at > 0 && before(w, heaviest[at - 1]); --at) heaviest[at] = heaviest[at - 1];
    heaviest[at] = w;
  }
}

void LayerSearch::Rank() {
  if (ranked_) return;
  ranked_ = true;
  for (size_t s = 0; s < scenarios_; ++s) {
    SortByLoad(s);
    const double scale = busiest_[s] > 0 ? 1 / busiest_[s] : 0;
    for (int32_t w = 0; w < workers_; ++w) {
      const double load = load_[s * workers_ + w];
      powers_[s * workers_ + w] = bursty() ? std::exp(bursts_[s].t() * (load - busiest_[s])) : Power16(load * scale);
    }
  }
}

void LayerSearch::AddTo(int32_t w, int32_t e, double part) {
  Touch(w);
  for (size_t s = 0; s < scenarios_; ++s) delta_[s * workers_ + w] += tokens_[s][e] * part * slowness_[w];
}

void LayerSearch::Gather(const Edit& edit) {
  for (int32_t i = 0; i < edit.arrivals + edit.leaves; ++i) {
    const int32_t e = i < edit.arrivals ? edit.arrive[i].expert : edit.leave[i - edit.arrivals].expert;
    bool seen = false;
    for (int32_t k = 0; k < i; ++k) {
      seen |= e == (k < edit.arrivals ? edit.arrive[k].expert : edit.leave[k - edit.arrivals].expert);
    }
    if (seen) continue;
    int32_t after = Count(e);
    for (int32_t k = 0; k < edit.arrivals; ++k) after += edit.arrive[k].expert == e ? 1 : 0;
    for (int32_t k = 0; k < edit.leaves; ++k) after -= edit.leave[k].expert == e ? 1 : 0;
    const double part = 1.0 / after;
    if (after != Count(e)) {
      const double change = part - 1.0 / Count(e);
      for (const int32_t w : Holders(e)) AddTo(w, e, change);
      for (int32_t k = 0; k < edit.leaves; ++k) {
        if (edit.leave[k].expert == e) AddTo(edit.leave[k].worker, e, -part);
      }
    } else {
      for (int32_t k = 0; k < edit.leaves; ++k) {
        if (edit.leave[k].expert == e) AddTo(edit.leave[k].worker, e, -part);
      }
    }
    for (int32_t k = 0; k < edit.arrivals; ++k) {
      if (edit.arrive[k].expert == e) AddTo(edit.arrive[k].worker, e, part);
    }
  }
}

void LayerSearch::ClearGathered() {
  for (const int32_t w : touched_) {
    marked_[w] = false;
    for (size_t s = 0; s < scenarios_; ++s) delta_[s * workers_ + w] = 0;
  }
  touched_.clear();
}

double LayerSearch::Value(const Edit& edit, std::span<const double> slopes) {
  Gather(edit);
  double gain = 0;
  double crowd = 0;
  double total = 0;
  for (size_t s = 0; s < scenarios_; ++s) {
    if (busiest_[s] == 0) continue;
    const double* load = &load_[s * workers_];
    const double* delta = &delta_[s * workers_];
    const double* now = &powers_[s * workers_];
    const double scale = 1 / busiest_[s];
    double most = 0;
    double powers = 0;
    for (const int32_t w : touched_) {
      const double after = load[w] + delta[w];
      most = std::max(most, after);
      powers += now[w] - Power16(after * scale);
    }
    bool found = false;
    for (const int32_t w : heaviest_[s]) {
      if (marked_[w]) continue;
      most = std::max(most, load[w]);
      found = true;
      break;
    }
    if (!found) {
      for (int32_t w = 0; w < workers_; ++w) {
        if (!marked_[w]) most = std::max(most, load[w]);
      }
    }
    gain += slopes[s] * (busiest_[s] - most);
    crowd += slopes[s] * busiest_[s] * powers;
    total += slopes[s] * busiest_[s];
  }
  ClearGathered();
  if (gain < -kRounding * total) return -1;
  // Where the busiest stays, it is a gain that fewer are as busy.
  return (gain + kCrowd * crowd) / edit.arrivals;
}

double LayerSearch::SwapValue(int32_t c, int32_t e, int32_t w, int32_t f, std::span<const double> slopes) const {
  double gain = 0;
  double crowd = 0;
  double total = 0;
  const double part_e = 1.0 / Count(e);
  const double part_f = 1.0 / Count(f);
  for (size_t s = 0; s < scenarios_; ++s) {
    if (busiest_[s] == 0) continue;
    const double* load = &load_[s * workers_];
    const double at_c = load[c] + (tokens_[s][f] * part_f - tokens_[s][e] * part_e) * slowness_[c];
    const double at_w = load[w] + (tokens_[s][e] * part_e - tokens_[s][f] * part_f) * slowness_[w];
    double most = std::max(at_c, at_w);
    for (const int32_t next : heaviest_[s]) {
      if (next == c || next == w) continue;
      most = std::max(most, load[next]);
      break;
    }
    const double scale = 1 / busiest_[s];
    const double* now = &powers_[s * workers_];
    const double powers = now[c] - Power16(at_c * scale) + now[w] - Power16(at_w * scale);
    gain += slopes[s] * (busiest_[s] - most);
    crowd += slopes[s] * busiest_[s] * powers;
    total += slopes[s] * busiest_[s];
  }
  return gain < -kRounding * total ? -1 : (gain + kCrowd * crowd) / 2;
}

double LayerSearch::PowersOf(size_t s, int32_t expert, int32_t but) const {
  double sum = 0;
  for (const int32_t w : Holders(expert)) sum += w == but ? 0 : powers_[s * workers_ + w];
  return sum;
}

void LayerSearch::Consider(const Edit& edit, std::span<const double> slopes, double& value, Edit& best) {
  const double v = Value(edit, slopes);
  if (v > value) {
    value = v;
    best = edit;
  }
}

const std::vector<int32_t>& LayerSearch::Lightest(size_t s, size_t most) {
  std::vector<int32_t>& order = order_;
  most = std::min<size_t>(most, workers_);
  if (workers_ <= kSortedWorkers) {
    order.assign(heaviest_[s].rbegin(), heaviest_[s].rbegin() + static_cast<std::ptrdiff_t>(most));
    return order;
  }
  order.resize(workers_);
  std::iota(order.begin(), order.end(), 0);
  const double* load = &load_[s * workers_];
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(most), order.end(),
                    [&](int32_t a, int32_t b) { return load[a] != load[b] ? load[a] < load[b] : a < b; });
  order.resize(most);
  return order;
}

void LayerSearch::GatherLightest(size_t s, int32_t c, const Room& room, std::span<const int32_t> used) {
  const double* load = &load_[s * workers_];
  packed_.clear();
  spare_.clear();
  lightest_.clear();
  for (const int32_t w : Lightest(s, workers_ <= kFewWorkers ? workers_ : kLightest)) {
    if (w == c || room.closed[w] || load[w] >= load[c]) continue;
    Light& light = lightest_.emplace_back();
    light.worker = w;
    light.slot = HasSlot(w, room, used);
    light.least = std::numeric_limits<double>::infinity();
    light.first = packed_.size();
    light.first_spare = spare_.size();
    for (const int32_t f : packs_[w]) {
      if (Decided(f, w)) continue;
      const Held held{f, tokens_[s][f] / Count(f)};
      packed_.push_back(held);
      if (Count(f) > 1) spare_.push_back(held);
      light.least = std::min(light.least, held.part);
    }
    light.count = packed_.size() - light.first;
    light.spares = spare_.size() - light.first_spare;
  }
}

void LayerSearch::FromBusiest(size_t s, std::span<const double> slopes, const Room& room, std::span<const int32_t> used,
                              double& value, Edit& best) {
  const int32_t c = heaviest_[s][0];
  const double* load = &load_[s * workers_];
  const double* powers = &powers_[s * workers_];
  const auto part = [&](int32_t e, int32_t more) { return tokens_[s][e] / (Count(e) + more); };
  // The busiest of the workers but `c`: where `expert`'s holders but `c` have `less` of it, or as it is (-1).
  struct Rest {
    int32_t worker = -1;
    double load = 0;
  };
  const auto rest_of = [&](int32_t expert, double less) {
    Rest rest;
    for (const int32_t w : std::span(heaviest_[s]).subspan(1)) {
      const bool eased = expert >= 0 && Holds(w, expert);
      const double after = eased ? load[w] - less * slowness_[w] : load[w];
      if (rest.worker < 0 || after > rest.load) rest = {w, after};
      if (!eased) break;
    }
    return rest;
  };
  // What Value can be at most after a change that leaves `c` with `here`, gives `w` `there` and the others `rest`,
  // `crowd` being the powers that go.
  double others = 0;
  for (size_t i = 0; i < scenarios_; ++i) {
    if (i != s) others += slopes[i] * (busiest_[i] - level_[i] + 2 * kCrowd * busiest_[i]);
  }
  const double slope = slopes[s];
  const double scale = 1 / busiest_[s];
  const double by_crowd = kCrowd * busiest_[s];
  const auto most = [&](int32_t w, double here, double there, const Rest& rest, double crowd) {
    double after = std::max({level_[s], here, there});
    if (rest.worker != w) after = std::max(after, rest.load);
    return others + slope * (busiest_[s] - after + by_crowd * crowd);
  };
  const auto power = [&](double x) { return Power16(x * scale); };
  const Rest others_stay = rest_of(-1, 0);
  GatherLightest(s, c, room, used);
  double light_power = 0;
  for (const Light& light : lightest_) light_power = std::max(light_power, powers[light.worker]);
  const auto is_light = [&](int32_t w) {
    return std::any_of(lightest_.begin(), lightest_.end(), [&](const Light& light) { return light.worker == w; });
  };
  // The heaviest first: what comes later need not be looked at closely.
  hottest_.assign(packs_[c].begin(), packs_[c].end());
  std::sort(hottest_.begin(), hottest_.end(), [&](int32_t a, int32_t b) {
    const double at_a = part(a, 0);
    const double at_b = part(b, 0);
    return at_a != at_b ? at_a > at_b : a < b;
  });
  for (const int32_t e : hottest_) {
    if (tokens_[s][e] == 0) break;
    const bool stays = Decided(e, c);
    const double now = part(e, 0);
    const double shared = part(e, 1);
    const double here = load[c] - now * slowness_[c];
    const double eased = load[c] - (now - shared) * slowness_[c];
    // Another replica eases all that hold it.
    const Rest rest = Count(e) > 1 ? rest_of(e, now - shared) : others_stay;
    double crowd_eased = 1 - power(eased);
    for (const int32_t other : Holders(e)) {
      if (other != c) crowd_eased += powers[other] - power(load[other] - (now - shared) * slowness_[other]);
    }
    const double crowd_here = 1 - power(here);
    // Mostly no worker is light enough to make it the best.
    const Rest least_rest = is_light(rest.worker) ? Rest() : rest;
    const bool worth = most(-1, here, 0, least_rest, std::max(crowd_eased, crowd_here) + light_power) > value;
    for (const Light& light : std::span(lightest_).first(worth ? lightest_.size() : 0)) {
      const int32_t w = light.worker;
      if (!CanTake(w, e)) continue;
      if (light.slot) {
        const double both = load[w] + shared * slowness_[w];
        if (most(w, eased, both, rest, crowd_eased + powers[w] - power(both)) > value) {
          Consider(MakeEdit({{e, w}}, {}), slopes, value, best);
        }
        const double alone = load[w] + now * slowness_[w];
        if (!stays && most(w, here, alone, others_stay, crowd_here + powers[w] - power(alone)) > value) {
          Consider(MakeEdit({{e, w}}, {{e, c}}), slopes, value, best);
        }
      }
      if (most(w, eased, 0, rest, crowd_eased + powers[w]) > value) {
        for (const Held& f : Spares(light)) {
          const double there = load[w] + (shared - f.part) * slowness_[w];
          double crowd = crowd_eased + powers[w];
          if (most(w, eased, there, rest, crowd) <= value) continue;
          // The others that hold it get its part.
          const double more = f.part / (Count(f.expert) - 1);
          double here_then = eased;
          double raised = there;
          crowd -= power(there);
          for (const int32_t other : Holders(f.expert)) {
            if (other == w) continue;
            if (other == c) {
              here_then += more * slowness_[c];
              crowd -= power(here_then) - power(eased);
              continue;
            }
            const double before = Holds(other, e) ? load[other] - (now - shared) * slowness_[other] : load[other];
            const double after = before + more * slowness_[other];
            raised = std::max(raised, after);
            crowd -= power(after) - power(before);
          }
          if (most(w, here_then, raised, rest, crowd) > value) {
            Consider(MakeEdit({{e, w}}, {{f.expert, w}}), slopes, value, best);
          }
        }
      }
      // Of the swaps with a worker the most level one. What it can be at most: of all that the two have, level; or with
      // the least that `w` can give in return.
      if (stays || room.closed[c]) continue;
      const double level = (load[c] * speed_[c] + load[w] * speed_[w]) / (speed_[c] + speed_[w]);
      const double lightened = load[c] - (now - light.least) * slowness_[c];
      if (most(w, std::max(level, lightened), 0, others_stay, 1 + powers[w]) <= 2 * value) continue;
      int32_t partner = -1;
      double lowest = load[c];
      for (const Held& f : Swappable(light)) {
        const double shift = now - f.part;
        if (shift <= 0) continue;
        const double after = std::max(load[c] - shift * slowness_[c], load[w] + shift * slowness_[w]);
        if (after >= lowest || !CanTake(c, f.expert)) continue;
        lowest = after;
        partner = f.expert;
      }
      if (partner >= 0 && most(w, lowest, lowest, others_stay, 1 + powers[w]) > 2 * value) {
        const double v = SwapValue(c, e, w, partner, slopes);
        if (v > value) {
          value = v;
          best = MakeEdit({{e, w}, {partner, c}}, {{e, c}, {partner, w}});
        }
      }
    }
    if (stays || Count(e) < 2 || room.closed[c]) continue;
    // Its spare replica makes room for what the next ones have too much of; the others that hold it get its part.
    const double more = part(e, -1) - now;
    for (size_t i = 1; i < std::min<size_t>(4, heaviest_[s].size()); ++i) {
      for (const int32_t g : packs_[heaviest_[s][i]]) {
        const double comes = part(g, 1);
        if (comes >= now || !CanTake(c, g)) continue;
        const double at = here + comes * slowness_[c];
        if (most(c, at, 0, {}, 1 + Count(g)) <= value) continue;
        double crowd = 1 - power(at) + PowersOf(s, g, c);
        if (most(c, at, 0, {}, crowd) <= value) continue;
        const double less = part(g, 0) - comes;
        double raised = 0;
        for (const int32_t other : Holders(e)) {
          if (other == c) continue;
          const double after = load[other] + (Holds(other, g) ? more - less : more) * slowness_[other];
          raised = std::max(raised, after);
          crowd += powers[other] - power(after);
        }
        if (most(c, at, raised, rest_of(g, less), crowd) <= value) continue;
        Consider(MakeEdit({{g, c}}, {{e, c}}), slopes, value, best);
      }
    }
  }
}

bool LayerSearch::FindEdit(std::span<const double> slopes, const Room& room, std::span<const int32_t> used,
                           double least, Edit& best) {
  if (split_ == Split::kSolved) return FindEditOfShares(room, used, slopes[0] > 0 ? least / slopes[0] : 0, best);
  if (bursty()) return FindEditOfBursts(slopes, room, used, best);
  Rank();
  double total = 0;
  for (size_t s = 0; s < scenarios_; ++s) total += slopes[s] * busiest_[s];
  const double none = kRounding * total;
  double value = none;
  for (size_t s = 0; s < scenarios_; ++s) {
    // Of little account, or level.
    if (slopes[s] * busiest_[s] < 0.01 * total || busiest_[s] <= level_[s] * (1 + kRounding)) continue;
    FromBusiest(s, slopes, room, used, value, best);
  }
  return value > none;
}

double LayerSearch::Growth(size_t s, int32_t worker, double by) const {
  return Power16((load_[s * workers_ + worker] + by * slowness_[worker]) * (1 / level_[s])) -
         power_[s * workers_ + worker];
}

void LayerSearch::RaiseLoads() {
  power_.resize(load_.size());
  growth_.assign(scenarios_ * experts_, 0);
  for (size_t s = 0; s < scenarios_; ++s) {
    if (level_[s] == 0) continue;
    const double scale = 1 / level_[s];
    for (int32_t w = 0; w < workers_; ++w) power_[s * workers_ + w] = Power16(load_[s * workers_ + w] * scale);
    for (int32_t e = 0; e < experts_; ++e) {
      if (Count(e) <= kManyHolders) continue;
      const double more = tokens_[s][e] / (Count(e) - 1) - tokens_[s][e] / Count(e);
      for (const int32_t w : Holders(e)) growth_[s * experts_ + e] += Growth(s, w, more);
    }
  }
}

double LayerSearch::HomeCost(int32_t expert, int32_t w, int32_t f, std::span<const double> slopes) const {
  double change = 0;
  for (size_t s = 0; s < scenarios_; ++s) {
    if (level_[s] == 0) continue;
    double comes = expert < 0 ? 0 : tokens_[s][expert];
    double powers = 0;
    if (f >= 0) {
      const double part = tokens_[s][f] / Count(f);
      const double more = tokens_[s][f] / (Count(f) - 1) - part;
      comes -= part;
      if (Count(f) > kManyHolders) {
        powers = growth_[s * experts_ + f] - Growth(s, w, more);
      } else {
        for (const int32_t other : Holders(f)) powers += other == w ? 0 : Growth(s, other, more);
      }
    }
    change += slopes[s] * level_[s] * (powers + Growth(s, w, comes));
  }
  return change;
}

int64_t LayerSearch::EditCost() const {
  const int64_t replicas = table_.begin[experts_];
  if (split_ == Split::kSolved) return replicas + workers_ + experts_;
  const int64_t slots = replicas / workers_ + 1;
  const int64_t lightest = workers_ <= kFewWorkers ? workers_ : static_cast<int64_t>(kLightest);
  // Every replica is tried, and each trial visits the experts' holders; most end early.
  if (bursty()) {
    return static_cast<int64_t>(scenarios_) * (workers_ + lightest * slots * replicas * (replicas / experts_ + 1) / 16);
  }
  return static_cast<int64_t>(scenarios_) * (workers_ + lightest * slots * slots * (replicas / experts_ + 1));
}

bool LayerSearch::FindHome(int32_t expert, std::span<const double> slopes, const Room& room,
                           std::span<const int32_t> arrivals, Edit& best) {
  RaiseLoads();
  double arrival = 0;
  for (size_t s = 0; s < scenarios_; ++s) arrival += slopes[s] * level_[s];
  // Of a layer without load nothing else is known.
  arrival = arrival > 0 ? kArrivalCost * arrival : 1;
  Home home;
  const auto consider = [&](int32_t w, int32_t f) {
    Consider({w, f, HomeCost(expert, w, f, slopes) + arrivals[w] * arrival, room.free[w]}, home);
  };
  for (int32_t w = 0; w < workers_; ++w) {
    if (!room.closed[w] && HasSlot(w, room, {})) consider(w, -1);
  }
  ForEachSpare([&](int32_t f, int32_t w) {
    if (!room.closed[w]) consider(w, f);
  });
  if (home.worker < 0) return false;
  best = home.leaves < 0 ? MakeEdit({{expert, home.worker}}, {})
                         : MakeEdit({{expert, home.worker}}, {{home.leaves, home.worker}});
  return true;
}

bool LayerSearch::FindSpare(std::span<const double> slopes, Edit& best, double& cost) {
  RaiseLoads();
  Home home;
  ForEachSpare([&](int32_t f, int32_t w) { Consider({w, f, HomeCost(-1, w, f, slopes), 0}, home); });
  if (home.worker < 0) return false;
  best = MakeEdit({}, {{home.leaves, home.worker}});
  cost = home.cost;
  return true;
}

}  // namespace ballast
