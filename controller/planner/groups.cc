#include "controller/planner/groups.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "controller/planner/anneal.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// The last stage sums over the workers of groups: over groups alone the sum is least with large groups busier than
// small ones. The first counts each group once, which parts the heaviest experts better where slots are tightest.
constexpr internal::Stage kStages[] = {{4, .3, 1e-4, .5}, {7, .3, 1e-4, .5}};
constexpr int kLastDoublings = kStages[1].doublings;

class Grouper {
 public:
  Grouper(std::span<const double> tokens, int32_t workers, int32_t slots, int32_t large)
      : tokens_(tokens),
        step_(slots - 1),
        groups_(tokens.size() - static_cast<size_t>(workers) * step_ - large),
        load_(groups_.size()),
        group_of_(tokens.size()),
        place_of_(tokens.size()) {
    std::vector<int32_t> order(tokens.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return tokens[a] > tokens[b]; });
    // The heaviest experts one to a group, the lightest where a worker is missing or has most to do.
    const auto count = static_cast<int32_t>(groups_.size());
    for (int32_t g = 0; g < count; ++g) Put(order[g], g);
    size_t lightest = order.size();
    for (int32_t w = 0; w < workers; ++w) {
      int32_t to = w;
      if (w >= count) {
        to = 0;
        for (int32_t g = 1; g < count; ++g) {
          if (Level(g) > Level(to)) to = g;
        }
      }
      const bool is_large = w >= workers - large;
      for (int32_t i = 0; i < step_ + is_large; ++i) Put(order[--lightest], to);
      ++groups_[to].workers;
      groups_[to].large += is_large;
    }
    Keep();
  }

  std::vector<ExpertGroup> Run(int64_t proposals) {
    if (groups_.size() > 1 && best_ > 0) {
      internal::Anneal(
          proposals, kStages,
          [&](int doublings) {
            Keep();
            doublings_ = doublings;
            scale_ = static_cast<float>(1 / Busiest());
          },
          [&](int64_t i, float temperature) { Propose(i, temperature); });
      Keep();
    }
    return std::move(kept_);
  }

 private:
  void Put(int32_t e, int32_t g) {
    group_of_[e] = g;
    place_of_[e] = static_cast<int32_t>(groups_[g].experts.size());
    groups_[g].experts.push_back(e);
    load_[g] += tokens_[e];
  }
  void Remove(int32_t e) {
    const int32_t g = group_of_[e];
    std::vector<int32_t>& experts = groups_[g].experts;
    experts[place_of_[e]] = experts.back();
    place_of_[experts.back()] = place_of_[e];
    experts.pop_back();
    load_[g] -= tokens_[e];
  }

  double Level(int32_t g) const { return load_[g] / groups_[g].workers; }
  double Busiest() {
    // Loads anew: what rounding has gathered is gone.
    double most = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      load_[g] = 0;
      for (const int32_t e : groups_[g].experts) load_[g] += tokens_[e];
      most = std::max(most, Level(static_cast<int32_t>(g)));
    }
    return most;
  }
  void Keep() {
    const double busiest = Busiest();
    if (busiest < best_) {
      best_ = busiest;
      kept_ = groups_;
    }
  }

  float Power(double load, int32_t workers) const {
    float x = static_cast<float>(load / workers) * scale_;
    for (int d = 0; d < doublings_; ++d) x *= x;
    return doublings_ == kLastDoublings ? static_cast<float>(workers) * x : x;
  }
  bool Accept(double load_from, int32_t from, int32_t workers_from, double load_to, int32_t to, int32_t workers_to,
              uint64_t bits, float temperature) const {
    const float change = Power(load_from, workers_from) + Power(load_to, workers_to) -
                         Power(load_[from], groups_[from].workers) - Power(load_[to], groups_[to].workers);
    return change <= 0 || change < temperature * tolerance_(bits);
  }

  void Propose(int64_t i, float temperature) {
    const uint64_t bits = random_.Next();
    const uint64_t more = random_.Next();
    const auto experts = static_cast<uint32_t>(tokens_.size());
    auto e = static_cast<int32_t>(internal::Random::Below(static_cast<uint32_t>(bits), experts));
    auto f = static_cast<int32_t>(internal::Random::Below(static_cast<uint32_t>(bits >> 32), experts));
    // Half of the changes start at the busier of two groups.
    if (i & 1) {
      const auto other = static_cast<int32_t>(internal::Random::Below(static_cast<uint32_t>(more), experts));
      if (Level(group_of_[other]) > Level(group_of_[e])) e = other;
    }
    if (group_of_[e] == group_of_[f]) return;
    if ((i & 2) == 0) {
      Swap(e, f, more >> 32, temperature);
      return;
    }
    // A worker of either size, or one of each.
    if (i & 4) std::swap(e, f);
    const ExpertGroup& from = groups_[group_of_[e]];
    const ExpertGroup& to = groups_[group_of_[f]];
    const auto choice = static_cast<int32_t>(
        internal::Random::Below(static_cast<uint32_t>(more), static_cast<uint32_t>(from.workers + to.workers)));
    if (choice < from.large) {
      Move(e, group_of_[f], 1, 1, more >> 32, temperature);
    } else if (choice < from.workers) {
      Move(e, group_of_[f], 1, 0, more >> 32, temperature);
    } else if (from.large > 0 && to.large < to.workers) {
      Move(e, group_of_[f], 0, 1, more >> 32, temperature);
    }
  }

  void Swap(int32_t e, int32_t f, uint64_t bits, float temperature) {
    const int32_t a = group_of_[e];
    const int32_t b = group_of_[f];
    const double less = tokens_[e] - tokens_[f];
    if (!Accept(load_[a] - less, a, groups_[a].workers, load_[b] + less, b, groups_[b].workers, bits, temperature)) {
      return;
    }
    load_[a] -= less;
    load_[b] += less;
    std::swap(group_of_[e], group_of_[f]);
    std::swap(place_of_[e], place_of_[f]);
    groups_[b].experts[place_of_[e]] = e;
    groups_[a].experts[place_of_[f]] = f;
  }

  // `e` and those after it in its group, as many as `workers` and `large` change the groups' sizes by.
  void Move(int32_t e, int32_t to, int32_t workers, int32_t large, uint64_t bits, float temperature) {
    const int32_t from = group_of_[e];
    if (groups_[from].workers <= workers) return;
    moving_.clear();
    double load = 0;
    const auto& experts = groups_[from].experts;
    for (int32_t i = 0; i < step_ * workers + large; ++i) {
      moving_.push_back(experts[(place_of_[e] + i) % experts.size()]);
      load += tokens_[moving_.back()];
    }
    if (!Accept(load_[from] - load, from, groups_[from].workers - workers, load_[to] + load, to,
                groups_[to].workers + workers, bits, temperature)) {
      return;
    }
    for (const int32_t m : moving_) {
      Remove(m);
      Put(m, to);
    }
    groups_[from].workers -= workers;
    groups_[to].workers += workers;
    groups_[from].large -= large;
    groups_[to].large += large;
  }

  const std::span<const double> tokens_;
  const int32_t step_;  // experts that a worker without one more slot brings
  std::vector<ExpertGroup> groups_;
  std::vector<double> load_;  // [groups]
  std::vector<int32_t> group_of_;
  std::vector<int32_t> place_of_;
  std::vector<int32_t> moving_;
  int doublings_ = 0;
  float scale_ = 1;
  std::vector<ExpertGroup> kept_;
  double best_ = std::numeric_limits<double>::infinity();
  const internal::Tolerance tolerance_;
  internal::Random random_{1};
};

}  // namespace

std::vector<ExpertGroup> GroupExperts(std::span<const double> tokens, int32_t workers, int32_t slots, int32_t large,
                                      int64_t proposals) {
  const auto experts = static_cast<int64_t>(tokens.size());
  const int64_t most = int64_t{workers} * slots + large;
  BALLAST_CHECK(slots >= 1 && large >= 0 && large <= workers && experts > most - workers && experts <= most)
      << experts << " experts, " << workers << " workers of " << slots << " slots, " << large << " with one more";
  return Grouper(tokens, workers, slots, large).Run(proposals);
}

}  // namespace ballast
