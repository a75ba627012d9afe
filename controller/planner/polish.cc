#include "controller/planner/polish.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "controller/planner/anneal.h"
#include "controller/planner/load.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

// Up to so many slots all tries are made.
constexpr int64_t kSlots = 300;

class Polisher {
 public:
  explicit Polisher(const LayerProblem& problem) : problem_(problem) {
    for (const auto& tokens : problem.tokens) {
      whole_.push_back(ToIntegers(tokens));
      total_.push_back(static_cast<double>(std::accumulate(whole_.back().begin(), whole_.back().end(), int64_t{0})));
    }
  }

  // The busiest worker's load with shares solved, over the total; 0 without load. `full` gets the workers that have as
  // much.
  double Solve(const Packs& packs, size_t scenario, std::vector<int32_t>* full) const {
    if (total_[scenario] == 0) return 0;
    const auto workers = static_cast<int32_t>(packs.size());
    const DispatchTable table = ToTable(packs, static_cast<int32_t>(problem_.tokens[0].size()));
    ShareSolver solver(table, workers, problem_.speed);
    std::vector<int64_t> flow(table.num_replicas());
    const int64_t busiest = solver.Solve(whole_[scenario], flow);
    for (int32_t w = 0; full != nullptr && w < workers; ++w) {
      const int64_t speed = problem_.speed.empty() ? 1 : problem_.speed[w];
      if (solver.rank_loads()[w] >= (busiest - 1) * speed) full->push_back(w);
    }
    return static_cast<double>(busiest) / total_[scenario];
  }

  void Run(const PolishOptions& options, Packs& packs) const {
    const double limit = Imbalance(problem_, packs) * (1 + options.slack);
    std::vector<double> level(whole_.size());
    for (size_t s = 0; s < level.size(); ++s) level[s] = Solve(packs, s, nullptr);
    std::vector<int32_t> full;
    std::vector<bool> is_full;
    size_t worst = 0;
    const auto find_worst = [&] {
      worst = std::max_element(level.begin(), level.end()) - level.begin();
      full.clear();
      Solve(packs, worst, &full);
      is_full.assign(packs.size(), false);
      for (const int32_t w : full) is_full[w] = true;
    };
    find_worst();
    int64_t slots = 0;
    for (const auto& pack : packs) slots += std::ssize(pack);
    const int64_t tries = std::min<int64_t>(options.tries, options.tries * kSlots / std::max<int64_t>(slots, 1));
    internal::Random random(1);
    const auto below = [&](size_t n) {
      return internal::Random::Below(static_cast<uint32_t>(random.Next()), static_cast<uint32_t>(n));
    };
    for (int64_t i = 0; i < tries && !full.empty(); ++i) {
      const int32_t a = full[below(full.size())];
      const auto b = static_cast<int32_t>(below(packs.size()));
      if (is_full[b] || packs[a].empty() || packs[b].empty()) continue;
      int32_t& e = packs[a][below(packs[a].size())];
      int32_t& f = packs[b][below(packs[b].size())];
      if (std::find(packs[b].begin(), packs[b].end(), e) != packs[b].end() ||
          std::find(packs[a].begin(), packs[a].end(), f) != packs[a].end()) {
        continue;
      }
      std::swap(e, f);
      std::vector<double> changed = level;
      bool better = Imbalance(problem_, packs) <= limit;
      // The worst scenario first: mostly it decides.
      for (size_t k = 0; better && k < level.size(); ++k) {
        const size_t s = (worst + k) % level.size();
        changed[s] = Solve(packs, s, nullptr);
        better = changed[s] < level[worst] * (1 - 1e-9);
      }
      if (better) {
        level = std::move(changed);
        find_worst();
      } else {
        std::swap(e, f);
      }
    }
  }

 private:
  const LayerProblem& problem_;
  std::vector<std::vector<int64_t>> whole_;  // [scenarios][experts]
  std::vector<double> total_;                // [scenarios]
};

}  // namespace

void PolishForShares(const LayerProblem& problem, const PolishOptions& options, Packs& packs) {
  if (packs.size() > 1) Polisher(problem).Run(options, packs);
}

}  // namespace ballast
