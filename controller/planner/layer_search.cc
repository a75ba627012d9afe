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
// Experts with most tokens on busy workers that shares are searched with.
constexpr size_t kHottest = 8;
// How much it counts that fewer workers are as busy as the busiest.
constexpr double kCrowd = 1e-3;
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

bool LayerSearch::Decided(int32_t e, int32_t w) const {
  return std::find(decided_.begin(), decided_.end(), Change::Place{e, w}) != decided_.end();
}

void LayerSearch::Decide(const Change& change) {
  decided_.insert(decided_.end(), change.arrivals.begin(), change.arrivals.end());
  decided_.insert(decided_.end(), change.departures.begin(), change.departures.end());
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
  const std::span leave(edit.leave.data(), edit.leaves);
  Restructure(arrive, leave);
  decided_.insert(decided_.end(), arrive.begin(), arrive.end());
  decided_.insert(decided_.end(), leave.begin(), leave.end());
  if (chosen_.known && chosen_.edit == edit) {
    Use(chosen_);
  } else {
    Refresh();
  }
  chosen_.known = false;
}

void LayerSearch::Undo(const Edit& edit) {
  Restructure(std::span(edit.leave.data(), edit.leaves), std::span(edit.arrive.data(), edit.arrivals));
  decided_.resize(decided_.size() - edit.arrivals - edit.leaves);
  chosen_.known = false;
  Refresh();
}

void LayerSearch::Use(const Solution& solution) {
  load_ = solution.load;
  begin_ = solution.begin;
  flow_ = solution.flow;
  busiest_[0] = solution.busiest;
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
  return (gain + kCrowd * crowd) / edit.arrivals;
}

double LayerSearch::MostValue(size_t s, std::span<const double> slopes, int32_t w, double here, double there,
                              int32_t arrivals) const {
  double gain = 0;
  for (size_t i = 0; i < scenarios_; ++i) {
    double after = level_[i];
    if (i == s) {
      after = std::max(here, there);
      for (size_t k = 1; k < std::min<size_t>(3, heaviest_[s].size()); ++k) {
        if (heaviest_[s][k] == w) continue;
        // Other holders may be eased a little: at least half of the way to the level.
        after = std::max(after, arrivals > 1 ? load_[s * workers_ + heaviest_[s][k]] : level_[s]);
        break;
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
    const bool stays = Decided(e, c);
    const double here = load[c] - part(e, 0) / speed_[c];
    for (const int32_t w : lightest) {
      if (w == c || room.closed[w] || load[w] >= load[c] || !CanTake(w, e)) continue;
      if (HasSlot(w, room, used)) {
        Consider(MakeEdit({{e, w}}, {}), slopes, value, best);
        if (!stays && MostValue(s, slopes, w, here, load[w] + part(e, 0) / speed_[w], 1) > value) {
          Consider(MakeEdit({{e, w}}, {{e, c}}), slopes, value, best);
        }
      }
      // Of the swaps with a worker the most level one.
      int32_t partner = -1;
      double lowest = load[c];
      for (const int32_t f : packs_[w]) {
        if (Count(f) > 1 && !Decided(f, w)) {
          const double there = load[w] + (part(e, 1) - part(f, 0)) / speed_[w];
          if (MostValue(s, slopes, w, load[c] - (part(e, 0) - part(e, 1)) / speed_[c], there, 1) > value) {
            Consider(MakeEdit({{e, w}}, {{f, w}}), slopes, value, best);
          }
        }
        const double shift = part(e, 0) - part(f, 0);
        if (stays || shift <= 0) continue;
        const double after = std::max(load[c] - shift / speed_[c], load[w] + shift / speed_[w]);
        if (after >= lowest || room.closed[c] || Decided(f, w) || !CanTake(c, f)) continue;
        lowest = after;
        partner = f;
      }
      if (partner >= 0 && MostValue(s, slopes, w, lowest, lowest, 2) > value) {
        Consider(MakeEdit({{e, w}, {partner, c}}, {{e, c}, {partner, w}}), slopes, value, best);
      }
    }
    if (stays || Count(e) < 2 || room.closed[c]) continue;
    // Its spare replica makes room for what the next ones have too much of.
    for (size_t i = 1; i < std::min<size_t>(4, heaviest_[s].size()); ++i) {
      for (const int32_t g : packs_[heaviest_[s][i]]) {
        if (part(g, 1) >= part(e, 0) || !CanTake(c, g)) continue;
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
  // Experts that have most there.
  const size_t hottest = std::min(workers_ <= kFewWorkers ? experts.size() : kHottest, experts.size());
  std::partial_sort(experts.begin(), experts.begin() + static_cast<std::ptrdiff_t>(hottest), experts.end(),
                    [&](int32_t a, int32_t b) { return held[a] != held[b] ? held[a] > held[b] : a < b; });
  experts.resize(hottest);
  struct Candidate {
    double after;  // the busiest, estimated
    double value;  // a move
    Edit edit;
  };
  std::vector<Candidate> candidates;
  const auto consider = [&](double left, double there, int32_t w, const Edit& edit) {
    const double after = std::max(left / tight_speed, there / speed_[w]);
    if (after < z) candidates.push_back({after, (z - after) / edit.arrivals, edit});
  };
  for (const int32_t w : targets) {
    const double there = load_[w] * speed_[w];
    // Whose slot it is: a free one, or the spare replica's without which the two are most level.
    int32_t victim = -1;
    double freed = 0;
    double back = 0;
    const bool slot = HasSlot(w, room, used);
    for (const int32_t f : packs_[w]) {
      if (slot || !Spare(f, w)) continue;
      const double gone = flow(f, w);
      const bool tied = std::any_of(holders_[f].begin(), holders_[f].end(), [&](int32_t o) { return tight[o]; });
      const double comes_back = tied ? gone : 0;
      if (victim < 0 || comes_back < back || (comes_back == back && gone > freed)) {
        victim = f;
        freed = gone;
        back = comes_back;
      }
    }
    for (const int32_t e : experts) {
      if (!CanTake(w, e)) continue;
      if (slot || (victim >= 0 && victim != e)) {
        // As much of it as levels the two.
        const double left = tight_load + back;
        const double at = there - freed;
        const double x = std::clamp((left * speed_[w] - at * tight_speed) / (tight_speed + speed_[w]), 0.0, held[e]);
        consider(left - x, at + x, w, slot ? MakeEdit({{e, w}}, {}) : MakeEdit({{e, w}}, {{victim, w}}));
      }
      if (Count(e) > 1 || Decided(e, holders_[e][0]) || room.closed[holders_[e][0]]) continue;
      const int32_t c = holders_[e][0];
      for (const int32_t f : packs_[w]) {
        if (Count(f) > 1 || Decided(f, w) || !CanTake(c, f)) continue;
        const double other = flow(f, w);
        if (other >= held[e]) continue;
        consider(tight_load - held[e] + other, there + held[e] - other, w,
                 MakeEdit({{e, w}, {f, c}}, {{e, c}, {f, w}}));
      }
    }
  }
  // The estimates leave out who can pass load to whom: the best few are solved, until one is about as good as that.
  constexpr size_t kTried = 4;
  const size_t tried = std::min(kTried, candidates.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(tried), candidates.end(),
                    [](const Candidate& a, const Candidate& b) { return a.value > b.value; });
  const Solution before = Solved();
  double value = 0;
  for (size_t i = 0; i < tried; ++i) {
    const Edit& edit = candidates[i].edit;
    if (candidates[i].value <= value) break;
    const std::span arrive(edit.arrive.data(), edit.arrivals);
    const std::span leave(edit.leave.data(), edit.leaves);
    Restructure(arrive, leave);
    SolveShares();
    const double gain = (z - busiest_[0]) / edit.arrivals;
    if (gain > std::max(value, kRounding * z)) {
      value = gain;
      best = edit;
      chosen_ = Solved();
      chosen_.edit = edit;
    }
    Restructure(leave, arrive);
    if (value > 0.5 * candidates[i].value) break;
  }
  Use(before);
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
