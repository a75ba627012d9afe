#include "controller/planner/layer_search.h"

#include <algorithm>
#include <numeric>

#include "proto/base/check.h"

namespace ballast {
namespace {

// Workers that are looked at from the heavy end of a layer; all of them where there are few.
constexpr size_t kHeaviest = 24;
// How much it counts that fewer workers are as busy as the busiest.
constexpr double kCrowd = 1e-3;

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
                         const Topology& topology, Split split, int32_t slots)
    : tokens_(std::move(tokens)),
      workers_(static_cast<int32_t>(topology.workers.size())),
      experts_(table.num_experts()),
      scenarios_(tokens_.size()),
      split_(split),
      slots_(slots),
      holders_(experts_),
      packs_(workers_),
      load_(scenarios_ * workers_),
      busiest_(scenarios_),
      heaviest_(scenarios_),
      delta_(scenarios_ * workers_),
      marked_(workers_) {
  bool alike = true;
  double speed = 0;
  for (const TopologyWorker& w : topology.workers) {
    speed_.push_back(w.speed);
    speeds_.push_back(w.speed);
    speed += w.speed;
    alike &= w.speed == topology.workers[0].speed;
  }
  if (alike) speeds_.clear();
  for (const auto& layer : tokens_) {
    level_.push_back(std::accumulate(layer.begin(), layer.end(), 0.0) / speed);
  }
  for (int32_t e = 0; e < experts_; ++e) {
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      holders_[e].push_back(table.rank[r]);
      packs_[table.rank[r]].push_back(e);
    }
    std::sort(holders_[e].begin(), holders_[e].end());
  }
  if (split_ == Split::kSolved) {
    BALLAST_CHECK(scenarios_ == 1) << scenarios_ << " scenarios";
    whole_ = ToIntegers(tokens_[0]);
    const int64_t sum = std::accumulate(whole_.begin(), whole_.end(), int64_t{0});
    if (sum > 0) unit_ = level_[0] * speed / static_cast<double>(sum);
    if (alike) unit_ /= speed_[0];
  }
  if (split_ == Split::kSolved) {
    SolveShares();
  } else {
    order_.resize(workers_);
    std::iota(order_.begin(), order_.end(), 0);
    SplitEqually(order_);
  }
}

bool LayerSearch::Holds(int32_t w, int32_t e) const {
  return std::binary_search(holders_[e].begin(), holders_[e].end(), w);
}

bool LayerSearch::Decided(int32_t e, int32_t w) const {
  return std::find(decided_.begin(), decided_.end(), Change::Place{e, w}) != decided_.end();
}

void LayerSearch::Decide(const Change& change) {
  decided_.insert(decided_.end(), change.arrivals.begin(), change.arrivals.end());
  decided_.insert(decided_.end(), change.departures.begin(), change.departures.end());
}

DispatchTable LayerSearch::Table() const {
  DispatchTable table;
  FillTable(table);
  table.weight.assign(table.rank.size(), 1);
  return table;
}

void LayerSearch::Restructure(std::span<const Change::Place> arrive, std::span<const Change::Place> leave) {
  for (const auto& [e, w] : leave) {
    holders_[e].erase(std::lower_bound(holders_[e].begin(), holders_[e].end(), w));
    packs_[w].erase(std::find(packs_[w].begin(), packs_[w].end(), e));
  }
  for (const auto& [e, w] : arrive) {
    holders_[e].insert(std::lower_bound(holders_[e].begin(), holders_[e].end(), w), w);
    packs_[w].insert(std::lower_bound(packs_[w].begin(), packs_[w].end(), e), e);
  }
}

void LayerSearch::Apply(const Edit& edit) {
  const std::span arrive(edit.arrive.data(), edit.arrivals);
  const std::span leave(edit.leave.data(), edit.leaves);
  Restructure(arrive, leave);
  decided_.insert(decided_.end(), arrive.begin(), arrive.end());
  decided_.insert(decided_.end(), leave.begin(), leave.end());
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
    for (const int32_t other : holders_[e]) Touch(other);
  }
  SplitEqually(touched_);
  for (const int32_t w : touched_) marked_[w] = false;
  touched_.clear();
}

void LayerSearch::SplitEqually(std::span<const int32_t> workers) {
  for (size_t s = 0; s < scenarios_; ++s) {
    double* load = &load_[s * workers_];
    for (const int32_t w : workers) {
      load[w] = 0;
      for (const int32_t e : packs_[w]) load[w] += tokens_[s][e] / Count(e) / speed_[w];
    }
    busiest_[s] = *std::max_element(load, load + workers_);
  }
  ranked_ = false;
}

void LayerSearch::Rank() {
  if (ranked_) return;
  ranked_ = true;
  const size_t most = std::min<size_t>(kHeaviest, workers_);
  for (size_t s = 0; s < scenarios_; ++s) {
    const double* load = &load_[s * workers_];
    order_.resize(workers_);
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(most), order_.end(),
                      [&](int32_t a, int32_t b) { return load[a] != load[b] ? load[a] > load[b] : a < b; });
    heaviest_[s].assign(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(most));
  }
}

void LayerSearch::AddTo(int32_t w, int32_t e, double part) {
  Touch(w);
  for (size_t s = 0; s < scenarios_; ++s) delta_[s * workers_ + w] += tokens_[s][e] * part / speed_[w];
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
      for (const int32_t w : holders_[e]) AddTo(w, e, change);
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
    double most = 0;
    double powers = 0;
    for (const int32_t w : touched_) {
      most = std::max(most, load[w] + delta[w]);
      powers += Power16(load[w] / busiest_[s]) - Power16((load[w] + delta[w]) / busiest_[s]);
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
    const double at_c = load[c] + (tokens_[s][f] * part_f - tokens_[s][e] * part_e) / speed_[c];
    const double at_w = load[w] + (tokens_[s][e] * part_e - tokens_[s][f] * part_f) / speed_[w];
    double most = std::max(at_c, at_w);
    for (const int32_t next : heaviest_[s]) {
      if (next == c || next == w) continue;
      most = std::max(most, load[next]);
      break;
    }
    const double scale = 1 / busiest_[s];
    const double powers =
        Power16(load[c] * scale) - Power16(at_c * scale) + Power16(load[w] * scale) - Power16(at_w * scale);
    gain += slopes[s] * (busiest_[s] - most);
    crowd += slopes[s] * busiest_[s] * powers;
    total += slopes[s] * busiest_[s];
  }
  return gain < -kRounding * total ? -1 : (gain + kCrowd * crowd) / 2;
}

double LayerSearch::MostValue(size_t s, std::span<const double> slopes, int32_t w, double here, double there,
                              int32_t arrivals, bool next_stays) const {
  double gain = 0;
  for (size_t i = 0; i < scenarios_; ++i) {
    double after = level_[i];
    if (i == s) {
      after = std::max({after, here, there});
      if (next_stays && heaviest_[s].size() > 1 && heaviest_[s][1] != w) {
        after = std::max(after, load_[s * workers_ + heaviest_[s][1]]);
      }
    }
    gain += slopes[i] * (busiest_[i] - after + 2 * kCrowd * busiest_[i]);
  }
  return gain / arrivals;
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
  order.resize(workers_);
  std::iota(order.begin(), order.end(), 0);
  most = std::min<size_t>(most, workers_);
  const double* load = &load_[s * workers_];
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(most), order.end(),
                    [&](int32_t a, int32_t b) { return load[a] != load[b] ? load[a] < load[b] : a < b; });
  order.resize(most);
  return order;
}

void LayerSearch::FromBusiest(size_t s, std::span<const double> slopes, const Room& room, std::span<const int32_t> used,
                              double& value, Edit& best) {
  const int32_t c = heaviest_[s][0];
  const double* load = &load_[s * workers_];
  const auto part = [&](int32_t e, int32_t more) { return tokens_[s][e] / (Count(e) + more); };
  // What the lightest hold, once for all of the busiest one's experts.
  packed_.clear();
  packed_begin_.assign(1, 0);
  const std::vector<int32_t>& lightest = Lightest(s, workers_ <= kFewWorkers ? workers_ : kLightest);
  for (const int32_t w : lightest) {
    for (const int32_t f : packs_[w]) packed_.push_back({f, part(f, 0), Spare(f, w), Decided(f, w)});
    packed_begin_.push_back(packed_.size());
  }
  const auto most = [&](int32_t w, double at_c, double at_w, int32_t arrivals, bool next_stays) {
    return MostValue(s, slopes, w, at_c, at_w, arrivals, next_stays);
  };
  for (const int32_t e : packs_[c]) {
    if (tokens_[s][e] == 0) continue;
    const bool stays = Decided(e, c);
    const double now = part(e, 0);
    const double shared = part(e, 1);
    const double here = load[c] - now / speed_[c];
    const double eased = load[c] - (now - shared) / speed_[c];
    // Another replica eases all that hold it.
    const bool next_stays = heaviest_[s].size() > 1 && !Holds(heaviest_[s][1], e);
    for (size_t i = 0; i < lightest.size(); ++i) {
      const int32_t w = lightest[i];
      if (w == c || room.closed[w] || load[w] >= load[c] || !CanTake(w, e)) continue;
      if (HasSlot(w, room, used)) {
        if (most(w, eased, load[w] + shared / speed_[w], 1, next_stays) > value) {
          Consider(MakeEdit({{e, w}}, {}), slopes, value, best);
        }
        if (!stays && most(w, here, load[w] + now / speed_[w], 1, true) > value) {
          Consider(MakeEdit({{e, w}}, {{e, c}}), slopes, value, best);
        }
      }
      if (most(w, eased, 0, 1, next_stays) > value) {
        for (size_t k = packed_begin_[i]; k < packed_begin_[i + 1]; ++k) {
          const Held& f = packed_[k];
          if (f.spare && most(w, eased, load[w] + (shared - f.part) / speed_[w], 1, next_stays) > value) {
            Consider(MakeEdit({{e, w}}, {{f.expert, w}}), slopes, value, best);
          }
        }
      }
      // Of the swaps with a worker the most level one.
      const double level = (load[c] * speed_[c] + load[w] * speed_[w]) / (speed_[c] + speed_[w]);
      if (stays || room.closed[c] || most(w, level, level, 2, true) <= value) continue;
      int32_t partner = -1;
      double lowest = load[c];
      for (size_t k = packed_begin_[i]; k < packed_begin_[i + 1]; ++k) {
        const Held& f = packed_[k];
        const double shift = now - f.part;
        if (shift <= 0) continue;
        const double after = std::max(load[c] - shift / speed_[c], load[w] + shift / speed_[w]);
        if (after >= lowest || f.decided || !CanTake(c, f.expert)) continue;
        lowest = after;
        partner = f.expert;
      }
      if (partner >= 0 && most(w, lowest, lowest, 2, true) > value) {
        const double v = SwapValue(c, e, w, partner, slopes);
        if (v > value) {
          value = v;
          best = MakeEdit({{e, w}, {partner, c}}, {{e, c}, {partner, w}});
        }
      }
    }
    if (stays || Count(e) < 2 || room.closed[c]) continue;
    // Its spare replica makes room for what the next ones have too much of.
    for (size_t i = 1; i < std::min<size_t>(4, heaviest_[s].size()); ++i) {
      for (const int32_t g : packs_[heaviest_[s][i]]) {
        const double comes = part(g, 1);
        if (comes >= now || !CanTake(c, g)) continue;
        if (most(c, here + comes / speed_[c], 0, 1, !Holds(heaviest_[s][1], g)) <= value) continue;
        Consider(MakeEdit({{g, c}}, {{e, c}}), slopes, value, best);
      }
    }
  }
}

bool LayerSearch::FindEdit(std::span<const double> slopes, const Room& room, std::span<const int32_t> used,
                           Edit& best) {
  if (split_ == Split::kSolved) return FindEditOfShares(room, used, best);
  Rank();
  double total = 0;
  for (size_t s = 0; s < scenarios_; ++s) total += slopes[s] * busiest_[s];
  double value = kRounding * total;
  const double least = value;
  for (size_t s = 0; s < scenarios_; ++s) {
    // Of little account, or level.
    if (slopes[s] * busiest_[s] < 0.01 * total || busiest_[s] <= level_[s] * (1 + kRounding)) continue;
    FromBusiest(s, slopes, room, used, value, best);
  }
  return value > least;
}

double LayerSearch::Cost(const Edit& edit, std::span<const double> slopes) {
  Gather(edit);
  double change = 0;
  for (size_t s = 0; s < scenarios_; ++s) {
    if (level_[s] == 0) continue;
    const double* load = &load_[s * workers_];
    const double* delta = &delta_[s * workers_];
    double powers = 0;
    for (const int32_t w : touched_) {
      powers += Power16((load[w] + delta[w]) / level_[s]) - Power16(load[w] / level_[s]);
    }
    change += slopes[s] * level_[s] * powers;
  }
  ClearGathered();
  return change;
}

double LayerSearch::HomeCost(int32_t expert, int32_t w, int32_t f, std::span<const double> slopes) const {
  double change = 0;
  for (size_t s = 0; s < scenarios_; ++s) {
    if (level_[s] == 0) continue;
    const double* load = &load_[s * workers_];
    const double* power = &power_[s * workers_];
    const double scale = 1 / level_[s];
    const auto grows = [&](int32_t worker, double by) {
      return Power16((load[worker] + by / speed_[worker]) * scale) - power[worker];
    };
    double comes = tokens_[s][expert];
    double powers = 0;
    if (f >= 0) {
      const double part = tokens_[s][f] / Count(f);
      const double more = tokens_[s][f] / (Count(f) - 1) - part;
      comes -= part;
      for (const int32_t other : holders_[f]) powers += other == w ? 0 : grows(other, more);
    }
    change += slopes[s] * level_[s] * (powers + grows(w, comes));
  }
  return change;
}

bool LayerSearch::FindHome(int32_t expert, std::span<const double> slopes, const Room& room, Edit& best, double& cost) {
  power_.resize(load_.size());
  for (size_t s = 0; s < scenarios_; ++s) {
    for (int32_t w = 0; w < workers_ && level_[s] > 0; ++w) {
      power_[s * workers_ + w] = Power16(load_[s * workers_ + w] / level_[s]);
    }
  }
  bool found = false;
  const auto consider = [&](int32_t w, int32_t f) {
    const double change = HomeCost(expert, w, f, slopes);
    if (found && change >= cost) return;
    found = true;
    cost = change;
    best = f < 0 ? MakeEdit({{expert, w}}, {}) : MakeEdit({{expert, w}}, {{f, w}});
  };
  for (int32_t w = 0; w < workers_; ++w) {
    if (room.closed[w] || Holds(w, expert)) continue;
    if (HasSlot(w, room, {})) consider(w, -1);
    for (const int32_t f : packs_[w]) {
      if (Spare(f, w)) consider(w, f);
    }
  }
  return found;
}

bool LayerSearch::FindSpare(std::span<const double> slopes, Edit& best, double& cost) {
  bool found = false;
  for (int32_t e = 0; e < experts_; ++e) {
    for (const int32_t w : holders_[e]) {
      if (!Spare(e, w)) continue;
      const Edit edit = MakeEdit({}, {{e, w}});
      const double change = Cost(edit, slopes);
      if (found && change >= cost) continue;
      found = true;
      cost = change;
      best = edit;
    }
  }
  return found;
}

}  // namespace ballast
