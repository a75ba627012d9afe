#include "controller/planner/layer_search.h"

#include <algorithm>
#include <numeric>

#include "proto/base/check.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

// Workers that are looked at from each end of a layer; all of them where there are few.
constexpr size_t kHeaviest = 24;
constexpr size_t kLightest = 8;
constexpr int32_t kFewWorkers = 16;
// What counts for a level layer, and for a change that is no worse.
constexpr double kRounding = 1e-9;

double Power16(double x) {
  x *= x;
  x *= x;
  x *= x;
  return x * x;
}

Edit MakeEdit(std::initializer_list<Change::Place> arrive, std::initializer_list<Change::Place> leave) {
  Edit edit;
  for (const Change::Place& p : arrive) edit.arrive[edit.arrivals++] = p;
  for (const Change::Place& p : leave) edit.leave[edit.leaves++] = p;
  return edit;
}

}  // namespace

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
  Refresh();
}

bool LayerSearch::Holds(int32_t w, int32_t e) const {
  return std::binary_search(holders_[e].begin(), holders_[e].end(), w);
}

bool LayerSearch::Arrived(int32_t e, int32_t w) const {
  return std::find(arrived_.begin(), arrived_.end(), Change::Place{e, w}) != arrived_.end();
}

DispatchTable LayerSearch::Table() const {
  DispatchTable table;
  table.begin.reserve(experts_ + 1);
  table.begin.push_back(0);
  for (const Holders& at : holders_) {
    table.rank.insert(table.rank.end(), at.begin(), at.end());
    table.begin.push_back(static_cast<int32_t>(table.rank.size()));
  }
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
  Restructure(arrive, std::span(edit.leave.data(), edit.leaves));
  arrived_.insert(arrived_.end(), arrive.begin(), arrive.end());
  Refresh();
}

void LayerSearch::Undo(const Edit& edit) {
  Restructure(std::span(edit.leave.data(), edit.leaves), std::span(edit.arrive.data(), edit.arrivals));
  arrived_.resize(arrived_.size() - edit.arrivals);
  Refresh();
}

void LayerSearch::Refresh() {
  if (split_ == Split::kSolved) {
    SolveShares();
    return;
  }
  SplitEqually();
  std::vector<int32_t> order(workers_);
  const size_t most = std::min<size_t>(kHeaviest, workers_);
  for (size_t s = 0; s < scenarios_; ++s) {
    const double* load = &load_[s * workers_];
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(most), order.end(),
                      [&](int32_t a, int32_t b) { return load[a] != load[b] ? load[a] > load[b] : a < b; });
    heaviest_[s].assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(most));
    busiest_[s] = load[order[0]];
  }
}

void LayerSearch::SplitEqually() {
  std::fill(load_.begin(), load_.end(), 0.0);
  for (size_t s = 0; s < scenarios_; ++s) {
    double* load = &load_[s * workers_];
    for (int32_t e = 0; e < experts_; ++e) {
      if (holders_[e].empty()) continue;
      const double part = tokens_[s][e] / Count(e);
      for (const int32_t w : holders_[e]) load[w] += part / speed_[w];
    }
  }
}

void LayerSearch::SolveShares() {
  const DispatchTable table = Table();
  begin_ = table.begin;
  flow_.resize(table.rank.size());
  ShareSolver solver(table, workers_, speeds_);
  const int64_t z = solver.Solve(whole_, flow_);
  busiest_[0] = static_cast<double>(z) * unit_;
  for (int32_t w = 0; w < workers_; ++w) {
    const double load = static_cast<double>(solver.rank_loads()[w]) * unit_;
    load_[w] = speeds_.empty() ? load : load / speed_[w];
  }
}

void LayerSearch::AddTo(int32_t w, int32_t e, double part) {
  if (!marked_[w]) {
    marked_[w] = true;
    touched_.push_back(w);
  }
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
  return (gain + 0.01 * crowd) / edit.arrivals;
}

void LayerSearch::Consider(const Edit& edit, std::span<const double> slopes, double& value, Edit& best) {
  const double v = Value(edit, slopes);
  if (v > value) {
    value = v;
    best = edit;
  }
}

std::vector<int32_t> LayerSearch::Lightest(size_t s, size_t most) const {
  std::vector<int32_t> order(workers_);
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
  const std::vector<int32_t> lightest = Lightest(s, workers_ <= kFewWorkers ? workers_ : kLightest);
  const auto part = [&](int32_t e, int32_t more) { return tokens_[s][e] / (Count(e) + more); };
  for (const int32_t e : packs_[c]) {
    if (tokens_[s][e] == 0) continue;
    const bool stays = Arrived(e, c);
    for (const int32_t w : lightest) {
      if (w == c || room.closed[w] || load[w] >= load[c] || Holds(w, e)) continue;
      if (HasSlot(w, room, used)) {
        Consider(MakeEdit({{e, w}}, {}), slopes, value, best);
        if (!stays) Consider(MakeEdit({{e, w}}, {{e, c}}), slopes, value, best);
      }
      for (const int32_t f : packs_[w]) {
        if (Arrived(f, w)) continue;
        if (Count(f) > 1) Consider(MakeEdit({{e, w}}, {{f, w}}), slopes, value, best);
        if (stays || room.closed[c] || Holds(c, f) || part(f, 0) >= part(e, 0)) continue;
        Consider(MakeEdit({{e, w}, {f, c}}, {{e, c}, {f, w}}), slopes, value, best);
      }
    }
    if (stays || Count(e) < 2 || room.closed[c]) continue;
    // Its spare replica makes room for what the next ones have too much of.
    for (size_t i = 1; i < std::min<size_t>(4, heaviest_[s].size()); ++i) {
      for (const int32_t g : packs_[heaviest_[s][i]]) {
        if (Holds(c, g) || part(g, 1) >= part(e, 0)) continue;
        Consider(MakeEdit({{g, c}}, {{e, c}}), slopes, value, best);
      }
    }
  }
}

bool LayerSearch::FindEdit(std::span<const double> slopes, const Room& room, std::span<const int32_t> used,
                           Edit& best) {
  if (split_ == Split::kSolved) return FindEditOfShares(room, used, best);
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

bool LayerSearch::FindEditOfShares(const Room& room, std::span<const int32_t> used, Edit& best) {
  const double z = busiest_[0];
  if (z <= level_[0] * (1 + kRounding)) return false;
  const auto flow = [&](int32_t e, int32_t w) {
    const auto at = std::lower_bound(holders_[e].begin(), holders_[e].end(), w) - holders_[e].begin();
    return static_cast<double>(flow_[begin_[e] + at]) * unit_ * (speeds_.empty() ? speed_[0] : 1);
  };
  // The busiest worker and those that it can pass load on to, all as busy: only what leaves them helps.
  std::vector<bool> tight(workers_);
  std::vector<int32_t> reached = {static_cast<int32_t>(std::max_element(load_.begin(), load_.end()) - load_.begin())};
  tight[reached[0]] = true;
  std::vector<int32_t> experts;
  std::vector<double> held(experts_, -1.0);
  double tight_load = 0;
  double tight_speed = 0;
  for (size_t i = 0; i < reached.size(); ++i) {
    const int32_t w = reached[i];
    tight_load += load_[w] * speed_[w];
    tight_speed += speed_[w];
    for (const int32_t e : packs_[w]) {
      const double here = flow(e, w);
      if (here <= 0) continue;
      if (held[e] < 0) {
        held[e] = 0;
        experts.push_back(e);
      }
      held[e] += here;
      for (const int32_t other : holders_[e]) {
        if (tight[other]) continue;
        tight[other] = true;
        reached.push_back(other);
      }
    }
  }
  if (static_cast<int32_t>(reached.size()) == workers_) return false;
  std::vector<int32_t> targets;
  for (const int32_t w : Lightest(0, workers_ <= kFewWorkers ? workers_ : 4 * kLightest)) {
    if (!tight[w] && !room.closed[w]) targets.push_back(w);
    if (workers_ > kFewWorkers && targets.size() == kLightest) break;
  }
  struct Candidate {
    double value;
    Edit edit;
  };
  std::vector<Candidate> candidates;
  const auto consider = [&](double left, double there, int32_t w, const Edit& edit) {
    const double after = std::max(left / tight_speed, there / speed_[w]);
    if (after < z) candidates.push_back({(z - after) / edit.arrivals, edit});
  };
  for (const int32_t w : targets) {
    const double there = load_[w] * speed_[w];
    const bool slot = HasSlot(w, room, used);
    for (const int32_t e : experts) {
      if (Holds(w, e)) continue;
      // As much of it as levels the two.
      const auto spread = [&](double left, double at, const Edit& edit) {
        const double x = std::clamp((left * speed_[w] - at * tight_speed) / (tight_speed + speed_[w]), 0.0, held[e]);
        consider(left - x, at + x, w, edit);
      };
      if (slot) spread(tight_load, there, MakeEdit({{e, w}}, {}));
      const bool movable = Count(e) == 1 && !Arrived(e, holders_[e][0]) && !room.closed[holders_[e][0]];
      for (const int32_t f : packs_[w]) {
        if (Arrived(f, w)) continue;
        const double freed = flow(f, w);
        if (Count(f) > 1) {
          const bool back = std::any_of(holders_[f].begin(), holders_[f].end(), [&](int32_t o) { return tight[o]; });
          spread(tight_load + (back ? freed : 0), there - freed, MakeEdit({{e, w}}, {{f, w}}));
        } else if (movable && freed < held[e]) {
          const int32_t c = holders_[e][0];
          consider(tight_load - held[e] + freed, there + held[e] - freed, w,
                   MakeEdit({{e, w}, {f, c}}, {{e, c}, {f, w}}));
        }
      }
    }
  }
  // The estimates leave out who can pass load to whom: the best few are solved.
  constexpr size_t kTried = 3;
  const size_t tried = std::min(kTried, candidates.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(tried), candidates.end(),
                    [](const Candidate& a, const Candidate& b) { return a.value > b.value; });
  const auto load = load_;
  const auto flows = flow_;
  const auto begin = begin_;
  double value = 0;
  for (size_t i = 0; i < tried; ++i) {
    const Edit& edit = candidates[i].edit;
    const std::span arrive(edit.arrive.data(), edit.arrivals);
    const std::span leave(edit.leave.data(), edit.leaves);
    Restructure(arrive, leave);
    SolveShares();
    const double gain = (z - busiest_[0]) / edit.arrivals;
    Restructure(leave, arrive);
    if (gain > std::max(value, kRounding * z)) {
      value = gain;
      best = edit;
    }
  }
  load_ = load;
  flow_ = flows;
  begin_ = begin;
  busiest_[0] = z;
  return value > 0;
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

bool LayerSearch::FindHome(int32_t expert, std::span<const double> slopes, const Room& room, Edit& best, double& cost) {
  bool found = false;
  const auto consider = [&](const Edit& edit) {
    const double change = Cost(edit, slopes);
    if (found && change >= cost) return;
    found = true;
    cost = change;
    best = edit;
  };
  for (int32_t w = 0; w < workers_; ++w) {
    if (room.closed[w] || Holds(w, expert)) continue;
    if (HasSlot(w, room, {})) consider(MakeEdit({{expert, w}}, {}));
    for (const int32_t f : packs_[w]) {
      if (Spare(f, w)) consider(MakeEdit({{expert, w}}, {{f, w}}));
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
