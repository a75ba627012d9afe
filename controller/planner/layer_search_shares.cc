// The part of LayerSearch that judges by solved shares.
#include <algorithm>

#include "controller/planner/layer_search.h"

namespace ballast {
namespace {

// Experts with most tokens on busy workers that are looked at.
constexpr size_t kHottest = 8;

}  // namespace

void LayerSearch::Keep(Solution& solution) const {
  solution.load = load_;
  solution.flow = flow_;
  solution.busiest = busiest_[0];
  solution.bound = bound_;
  solution.known = true;
}

void LayerSearch::Use(const Solution& solution) {
  ranked_ = false;
  load_ = solution.load;
  flow_ = solution.flow;
  busiest_[0] = solution.busiest;
  bound_ = solution.bound;
}

bool LayerSearch::SolveShares(int64_t most) {
  if (solver_) {
    solver_->Reset(table_);
  } else {
    solver_.emplace(table_, workers_, speeds_);
  }
  flow_.resize(table_.rank.size());
  ranked_ = false;
  bound_ = solver_->Solve(whole_, flow_, most);
  if (bound_ > most) return false;
  busiest_[0] = static_cast<double>(bound_) * unit_;
  for (int32_t w = 0; w < workers_; ++w) {
    const double load = static_cast<double>(solver_->rank_loads()[w]) * unit_;
    load_[w] = speeds_.empty() ? load : load / speed_[w];
  }
  return true;
}

bool LayerSearch::FindEditOfShares(const Room& room, std::span<const int32_t> used, double least, Edit& best) {
  const double z = busiest_[0];
  if (z <= level_[0] * (1 + kRounding) || z - level_[0] <= least) return false;
  const double unit = unit_ * (speeds_.empty() ? speed_[0] : 1);
  // The busiest worker and those that it can pass load on to, all as busy: only what leaves them helps.
  tight_.assign(workers_, false);
  reached_.assign(1, static_cast<int32_t>(std::max_element(load_.begin(), load_.end()) - load_.begin()));
  tight_[reached_[0]] = true;
  std::vector<int32_t>& experts = experts_held_;
  experts.clear();
  held_.assign(experts_, -1);
  double tight_load = 0;
  double tight_speed = 0;
  for (size_t i = 0; i < reached_.size(); ++i) {
    const int32_t w = reached_[i];
    tight_load += load_[w] * speed_[w];
    tight_speed += speed_[w];
    for (const int32_t e : packs_[w]) {
      const double here = static_cast<double>(Flow(e, w)) * unit;
      if (here <= 0) continue;
      if (held_[e] >= 0) {
        held_[e] += here;
        continue;
      }
      held_[e] = here;
      experts.push_back(e);
      for (const int32_t other : Holders(e)) {
        if (tight_[other]) continue;
        tight_[other] = true;
        reached_.push_back(other);
      }
    }
  }
  if (static_cast<int32_t>(reached_.size()) == workers_) return false;
  // Experts that have most there.
  const size_t hottest = std::min(workers_ <= kFewWorkers ? experts.size() : kHottest, experts.size());
  std::partial_sort(experts.begin(), experts.begin() + static_cast<std::ptrdiff_t>(hottest), experts.end(),
                    [&](int32_t a, int32_t b) { return held_[a] != held_[b] ? held_[a] > held_[b] : a < b; });
  experts.resize(hottest);
  // The best few, best first; of equal ones the first.
  struct Candidate {
    double value;  // a move, estimated
    Edit edit;
  };
  constexpr size_t kTried = 4;
  absl::InlinedVector<Candidate, kTried + 1> candidates;
  // Whether such a value would not be among them.
  const auto full = [&](double value) {
    return value <= least || (candidates.size() == kTried && value <= candidates.back().value);
  };
  const double tight_slowness = 1 / tight_speed;
  // `left` tokens stay with them, `there` are `w`'s.
  const auto consider = [&](double left, double there, int32_t w, double per_arrival, const auto& make) {
    const double value = (z - std::max(left * tight_slowness, there * slowness_[w])) * per_arrival;
    if (full(value)) return;
    const auto at =
        std::find_if(candidates.begin(), candidates.end(), [&](const Candidate& c) { return c.value < value; });
    candidates.insert(at, {value, make()});
    if (candidates.size() > kTried) candidates.pop_back();
  };
  size_t targets = 0;
  if (workers_ <= kSortedWorkers) SortByLoad(0);
  for (const int32_t w : Lightest(0, workers_ <= kFewWorkers ? workers_ : 4 * kLightest)) {
    if (workers_ > kFewWorkers && targets == kLightest) break;
    if (tight_[w] || room.closed[w]) continue;
    ++targets;
    const double there = load_[w] * speed_[w];
    const bool slot = HasSlot(w, room, used);
    // Whose slot it is: a free one, or the spare replica's without which the two are most level.
    int32_t victim = -1;
    double freed = 0;
    double back = 0;
    // And what it alone holds, which may be swapped.
    packed_.clear();
    for (const int32_t f : packs_[w]) {
      if (Decided(f, w)) continue;
      const std::span<const int32_t> at = Holders(f);
      const double part = static_cast<double>(Flow(f, w)) * unit;
      if (at.size() == 1) {
        packed_.push_back({f, part});
        continue;
      }
      if (slot) continue;
      const double comes_back = std::any_of(at.begin(), at.end(), [&](int32_t o) { return tight_[o]; }) ? part : 0;
      if (victim < 0 || comes_back < back || (comes_back == back && part > freed)) {
        victim = f;
        freed = part;
        back = comes_back;
      }
    }
    for (const int32_t e : experts) {
      if (!CanTake(w, e)) continue;
      if (slot || (victim >= 0 && victim != e)) {
        // As much of it as levels the two.
        const double left = tight_load + back;
        const double at = there - freed;
        const double x = std::clamp((left * speed_[w] - at * tight_speed) / (tight_speed + speed_[w]), 0.0, held_[e]);
        consider(left - x, at + x, w, 1, [&] {
          return slot ? MakeEdit({{e, w}}, {}) : MakeEdit({{e, w}}, {{victim, w}});
        });
      }
      const int32_t c = Holders(e)[0];
      if (Count(e) > 1 || Decided(e, c) || room.closed[c]) continue;
      if (full((z - (tight_load + there) / (tight_speed + speed_[w])) / 2)) continue;
      for (const Held& f : packed_) {
        if (f.part >= held_[e] || Decided(f.expert, c)) continue;
        consider(tight_load - held_[e] + f.part, there + held_[e] - f.part, w, 0.5, [&] {
          return MakeEdit({{e, w}, {f.expert, c}}, {{e, c}, {f.expert, w}});
        });
      }
    }
  }
  // The estimates leave out who can pass load to whom: the best few are solved, until one is about as good as that.
  if (candidates.empty()) return false;
  Keep(before_);
  double value = least;
  for (const Candidate& candidate : candidates) {
    const Edit& edit = candidate.edit;
    if (candidate.value <= value) break;
    const std::span arrive(edit.arrive.data(), edit.arrivals);
    const std::span leave(edit.leave.data(), edit.leaves);
    Restructure(arrive, leave);
    // One that is no better need not be solved to its end.
    const double enough = std::max(value, kRounding * z);
    const auto most = static_cast<int64_t>((z - enough * edit.arrivals) / unit_) + 1;
    const double gain = SolveShares(most) ? (z - busiest_[0]) / edit.arrivals : 0;
    if (gain > enough) {
      value = gain;
      best = edit;
      Keep(chosen_);
      chosen_.edit = edit;
    }
    Restructure(leave, arrive);
    if (value > 0.5 * candidate.value) break;
  }
  Use(before_);
  return value > least;
}

}  // namespace ballast
