#include "controller/planner/search.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>

#include "proto/base/check.h"

namespace ballast {
namespace {

double Power16(double x) {
  x *= x;
  x *= x;
  x *= x;
  return x * x;
}

// A fixed sequence (SplitMix64).
class Random {
 public:
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>((Next() >> 32) * n >> 32); }
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

 private:
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  uint64_t state_ = 1;
};

class Annealer {
 public:
  // `tokens` [experts][scenarios], means of worker loads 1.
  Annealer(std::vector<double> tokens, size_t scenarios, Packs& packs)
      : tokens_(std::move(tokens)),
        scenarios_(scenarios),
        packs_(packs),
        holders_(tokens_.size() / scenarios),
        load_(packs.size() * scenarios),
        delta_(packs.size() * scenarios),
        marked_(packs.size()) {
    for (size_t w = 0; w < packs_.size(); ++w) {
      for (const int32_t e : packs_[w]) holders_[e].push_back(static_cast<int32_t>(w));
    }
    for (size_t e = 0; e < holders_.size(); ++e) {
      for (const int32_t w : holders_[e]) AddTo(w, static_cast<int32_t>(e), 1.0 / Count(static_cast<int32_t>(e)));
    }
    load_ = delta_;
    Clear();
    for (const double load : load_) cost_ += Power16(load);
  }

  void Run(const SearchOptions& options) {
    // From changes that cost as much as one more level worker down to next to nothing.
    constexpr double kHot = 1;
    constexpr double kCold = 1e-4;
    const double cooling = std::pow(kCold / kHot, 1.0 / std::max(1, options.proposals));
    double temperature = kHot;
    Packs best = packs_;
    double best_cost = cost_;
    for (int32_t i = 0; i < options.proposals; ++i, temperature *= cooling) {
      // Half of the changes start at the busiest of a few workers.
      int32_t a = Any();
      if ((i & 1) == 0) {
        for (int k = 0; k < 3; ++k) {
          const int32_t other = Any();
          if (Busiest(other) > Busiest(a)) a = other;
        }
      }
      const int32_t b = Any();
      if (a == b || packs_[a].empty() || packs_[b].empty()) continue;
      const size_t at_a = random_.Below(static_cast<uint32_t>(packs_[a].size()));
      const size_t at_b = random_.Below(static_cast<uint32_t>(packs_[b].size()));
      if (options.recount && (i & 3) == 2) {
        Recount(a, at_a, b, at_b, temperature);
      } else {
        Swap(a, at_a, b, at_b, temperature);
      }
      // Copies are dear and the end is cold: looking now and then is enough.
      if (i % 512 == 0 && cost_ < best_cost) {
        best_cost = cost_;
        best = packs_;
      }
    }
    if (best_cost <= cost_) packs_ = std::move(best);
  }

 private:
  int32_t Any() { return static_cast<int32_t>(random_.Below(static_cast<uint32_t>(packs_.size()))); }
  int32_t Count(int32_t e) const { return static_cast<int32_t>(holders_[e].size()); }
  bool Holds(int32_t w, int32_t e) const {
    return std::find(holders_[e].begin(), holders_[e].end(), w) != holders_[e].end();
  }
  double Busiest(int32_t w) const {
    return *std::max_element(load_.begin() + static_cast<std::ptrdiff_t>(w * scenarios_),
                             load_.begin() + static_cast<std::ptrdiff_t>((w + 1) * scenarios_));
  }

  // Changes are gathered in delta_, for the workers in changed_.
  void AddTo(int32_t w, int32_t e, double part) {
    if (!marked_[w]) {
      marked_[w] = true;
      changed_.push_back(w);
    }
    for (size_t s = 0; s < scenarios_; ++s) delta_[w * scenarios_ + s] += tokens_[e * scenarios_ + s] * part;
  }
  void Clear() {
    for (const int32_t w : changed_) {
      marked_[w] = false;
      std::fill_n(delta_.begin() + static_cast<std::ptrdiff_t>(w * scenarios_), scenarios_, 0.0);
    }
    changed_.clear();
  }
  bool Accept(double temperature) {
    double change = 0;
    for (const int32_t w : changed_) {
      for (size_t i = w * scenarios_; i < (w + 1) * scenarios_; ++i) {
        change += Power16(load_[i] + delta_[i]) - Power16(load_[i]);
      }
    }
    if (change > 0 && random_.Unit() >= std::exp(-change / temperature)) return false;
    for (const int32_t w : changed_) {
      for (size_t i = w * scenarios_; i < (w + 1) * scenarios_; ++i) load_[i] += delta_[i];
    }
    cost_ += change;
    return true;
  }

  void Swap(int32_t a, size_t at_a, int32_t b, size_t at_b, double temperature) {
    const int32_t e = packs_[a][at_a];
    const int32_t f = packs_[b][at_b];
    if (e == f || Holds(b, e) || Holds(a, f)) return;
    AddTo(a, e, -1.0 / Count(e));
    AddTo(b, e, 1.0 / Count(e));
    AddTo(b, f, -1.0 / Count(f));
    AddTo(a, f, 1.0 / Count(f));
    const bool accepted = Accept(temperature);
    Clear();
    if (!accepted) return;
    std::swap(packs_[a][at_a], packs_[b][at_b]);
    *std::find(holders_[e].begin(), holders_[e].end(), a) = b;
    *std::find(holders_[f].begin(), holders_[f].end(), b) = a;
  }

  // The replica at `b` becomes one of an expert of `a`.
  void Recount(int32_t a, size_t at_a, int32_t b, size_t at_b, double temperature) {
    const int32_t e = packs_[a][at_a];
    const int32_t f = packs_[b][at_b];
    if (Count(f) < 2 || e == f || Holds(b, e)) return;
    const double fewer = 1.0 / (Count(e) + 1);
    for (const int32_t w : holders_[e]) AddTo(w, e, fewer - 1.0 / Count(e));
    AddTo(b, e, fewer);
    const double more = 1.0 / (Count(f) - 1);
    for (const int32_t w : holders_[f]) AddTo(w, f, (w == b ? 0 : more) - 1.0 / Count(f));
    const bool accepted = Accept(temperature);
    Clear();
    if (!accepted) return;
    packs_[b][at_b] = e;
    std::erase(holders_[f], b);
    holders_[e].push_back(b);
  }

  const std::vector<double> tokens_;  // [experts][scenarios]
  const size_t scenarios_;
  Packs& packs_;
  std::vector<std::vector<int32_t>> holders_;  // [experts]
  std::vector<double> load_;                   // [workers][scenarios]
  double cost_ = 0;
  std::vector<double> delta_;
  std::vector<bool> marked_;
  std::vector<int32_t> changed_;
  Random random_;
};

}  // namespace

void ImprovePacks(std::span<const std::vector<double>> scenarios, const SearchOptions& options, Packs& packs) {
  BALLAST_CHECK(!scenarios.empty()) << "no scenario";
  std::vector<double> totals;
  for (const std::vector<double>& tokens : scenarios) {
    totals.push_back(std::accumulate(tokens.begin(), tokens.end(), 0.0));
  }
  const auto loaded =
      static_cast<size_t>(totals.size()) - static_cast<size_t>(std::count(totals.begin(), totals.end(), 0.0));
  if (loaded == 0 || packs.size() < 2) return;
  std::vector<double> tokens;
  for (size_t e = 0; e < scenarios[0].size(); ++e) {
    for (size_t s = 0; s < scenarios.size(); ++s) {
      if (totals[s] > 0) tokens.push_back(scenarios[s][e] / totals[s] * static_cast<double>(packs.size()));
    }
  }
  Annealer(std::move(tokens), loaded, packs).Run(options);
}

Packs PackGreedily(std::span<const double> tokens, std::span<const int32_t> slots) {
  const auto experts = static_cast<int32_t>(tokens.size());
  const auto workers = static_cast<int32_t>(slots.size());
  const int64_t total = std::accumulate(slots.begin(), slots.end(), int64_t{0});
  BALLAST_CHECK(total >= experts) << total << " slots for " << experts << " experts";
  std::vector<int32_t> count(experts, 1);
  const auto part = [&](int32_t e) { return tokens[e] / count[e]; };
  const auto cooler = [&](int32_t a, int32_t b) { return part(a) != part(b) ? part(a) < part(b) : a > b; };
  std::priority_queue<int32_t, std::vector<int32_t>, decltype(cooler)> hottest(cooler);
  for (int32_t e = 0; e < experts; ++e) hottest.push(e);
  for (int64_t spare = total - experts; spare > 0 && !hottest.empty();) {
    const int32_t e = hottest.top();
    hottest.pop();
    if (count[e] == workers) continue;
    ++count[e];
    --spare;
    hottest.push(e);
  }
  std::vector<int32_t> replicas;
  for (int32_t e = 0; e < experts; ++e) replicas.insert(replicas.end(), count[e], e);
  std::stable_sort(replicas.begin(), replicas.end(), [&](int32_t a, int32_t b) { return part(a) > part(b); });
  Packs packs(workers);
  std::vector<double> load(workers);
  for (const int32_t e : replicas) {
    int32_t to = -1;
    for (int32_t w = 0; w < workers; ++w) {
      if (static_cast<int32_t>(packs[w].size()) == slots[w]) continue;
      if (std::find(packs[w].begin(), packs[w].end(), e) != packs[w].end()) continue;
      if (to < 0 || load[w] < load[to]) to = w;
    }
    if (to < 0) {
      // Free slots are only where it is already: a replica of another worker makes room.
      for (int32_t free = 0; free < workers && to < 0; ++free) {
        if (static_cast<int32_t>(packs[free].size()) == slots[free]) continue;
        for (int32_t w = 0; w < workers && to < 0; ++w) {
          if (std::find(packs[w].begin(), packs[w].end(), e) != packs[w].end()) continue;
          for (int32_t& f : packs[w]) {
            if (std::find(packs[free].begin(), packs[free].end(), f) != packs[free].end()) continue;
            packs[free].push_back(f);
            load[free] += part(f);
            load[w] -= part(f);
            f = e;
            load[w] += part(e);
            to = w;
            break;
          }
        }
      }
      BALLAST_CHECK(to >= 0) << "expert " << e << " fits nowhere";
      continue;
    }
    packs[to].push_back(e);
    load[to] += part(e);
  }
  return packs;
}

}  // namespace ballast
