// The part of LayerSearch that judges by single steps, where experts' tokens come in bursts (bursts.h).
//
// The soft maximum of all workers counts, so that edits between any two of them gain: every replica is tried on the
// workers from the light end.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "controller/planner/layer_search.h"

namespace ballast {

void LayerSearch::BurdenHolders(int32_t e, int32_t but, int32_t before, int32_t after) {
  for (size_t s = 0; s < scenarios_; ++s) {
    for (const int32_t w : Holders(e)) {
      if (w != but) Burden(s, w, BurstPart(s, e, w, after) - BurstPart(s, e, w, before));
    }
  }
}

double LayerSearch::BurstValue(int32_t arrivals, std::span<const double> slopes) {
  double gain = 0;
  for (size_t s = 0; s < scenarios_; ++s) {
    if (busiest_[s] == 0) continue;
    double change = 0;
    for (const int32_t w : touched_) {
      change += powers_[s * workers_ + w] * std::expm1(bursts_[s].t() * delta_[s * workers_ + w]);
    }
    if (change > -0.5) {
      gain -= slopes[s] / bursts_[s].t() * std::log1p(change);
      continue;
    }
    // What is left is lost in rounding (or, by a worker far below the others, no number): summed up anew.
    after_.assign(load_.begin() + static_cast<std::ptrdiff_t>(s * workers_),
                  load_.begin() + static_cast<std::ptrdiff_t>((s + 1) * workers_));
    for (const int32_t w : touched_) after_[w] += delta_[s * workers_ + w];
    gain += slopes[s] * (busiest_[s] - bursts_[s].Busiest(after_));
  }
  ClearGathered();
  return gain / arrivals;
}

bool LayerSearch::FindEditOfBursts(std::span<const double> slopes, const Room& room, std::span<const int32_t> used,
                                   Edit& best) {
  Rank();
  double total = 0;
  for (size_t s = 0; s < scenarios_; ++s) total += slopes[s] * busiest_[s];
  const double none = kRounding * total;
  double value = none;
  const auto consider = [&](const Edit& edit) {
    const double v = BurstValue(edit.arrivals, slopes);
    if (v > value) {
      value = v;
      best = edit;
    }
  };
  // A replica of `e` with `count` of them comes to `w`, or goes.
  const auto comes = [&](int32_t e, int32_t w, int32_t count) {
    for (size_t s = 0; s < scenarios_; ++s) Burden(s, w, BurstPart(s, e, w, count));
  };
  const auto goes = [&](int32_t e, int32_t w, int32_t count) {
    for (size_t s = 0; s < scenarios_; ++s) Burden(s, w, -BurstPart(s, e, w, count));
  };
  // What an edit can gain at most that takes no more than the whole of `e` off its holders.
  const auto most = [&](int32_t e) {
    double gain = 0;
    for (size_t s = 0; s < scenarios_; ++s) {
      double change = 0;
      for (const int32_t c : Holders(e)) {
        change += powers_[s * workers_ + c] * std::expm1(-bursts_[s].t() * BurstPart(s, e, c, Count(e)));
      }
      // Next to all of the soft maximum: what is left is lost in rounding.
      if (change < -1 + 1e-6) return std::numeric_limits<double>::infinity();
      gain -= slopes[s] / bursts_[s].t() * std::log1p(change);
    }
    return gain;
  };
  receivers_.clear();
  for (size_t s = 0; s < scenarios_; ++s) {
    for (const int32_t w : Lightest(s, workers_ <= kFewWorkers ? workers_ : kLightest)) {
      if (!room.closed[w] && std::find(receivers_.begin(), receivers_.end(), w) == receivers_.end()) {
        receivers_.push_back(w);
      }
    }
  }
  for (int32_t e = 0; e < experts_; ++e) {
    if (most(e) <= value) continue;
    const int32_t count = Count(e);
    for (const int32_t w : receivers_) {
      if (!CanTake(w, e)) continue;
      const bool slot = HasSlot(w, room, used);
      if (slot) {
        BurdenHolders(e, -1, count, count + 1);
        comes(e, w, count + 1);
        consider(MakeEdit({{e, w}}, {}));
      }
      for (const int32_t f : packs_[w]) {
        if (!Spare(f, w)) continue;
        BurdenHolders(e, -1, count, count + 1);
        comes(e, w, count + 1);
        BurdenHolders(f, w, Count(f), Count(f) - 1);
        goes(f, w, Count(f));
        consider(MakeEdit({{e, w}}, {{f, w}}));
      }
      for (const int32_t c : Holders(e)) {
        const bool stays = Decided(e, c);
        if (slot && !stays) {
          goes(e, c, count);
          comes(e, w, count);
          consider(MakeEdit({{e, w}}, {{e, c}}));
        }
        if (room.closed[c]) continue;
        const bool slot_at_c = HasSlot(c, room, used);
        for (const int32_t f : packs_[w]) {
          if (Decided(f, w) || !CanTake(c, f)) continue;
          if (!stays) {
            goes(e, c, count);
            comes(e, w, count);
            goes(f, w, Count(f));
            comes(f, c, Count(f));
            consider(MakeEdit({{e, w}, {f, c}}, {{e, c}, {f, w}}));
          }
          // Another replica, and what makes up for it: neither would gain alone.
          if (slot_at_c) {
            BurdenHolders(e, -1, count, count + 1);
            comes(e, w, count + 1);
            goes(f, w, Count(f));
            comes(f, c, Count(f));
            consider(MakeEdit({{e, w}, {f, c}}, {{f, w}}));
          }
        }
      }
    }
  }
  return value > none;
}

}  // namespace ballast
