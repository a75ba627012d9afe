#include "controller/planner/search.h"

#include <algorithm>
#include <functional>
#include <random>
#include <set>

#include "gtest/gtest.h"

namespace ballast {
namespace {

void CheckPacks(const Packs& packs, std::span<const int32_t> slots, size_t experts) {
  std::set<int32_t> all;
  for (size_t w = 0; w < packs.size(); ++w) {
    ASSERT_LE(static_cast<int32_t>(packs[w].size()), slots[w]);
    ASSERT_EQ(std::set<int32_t>(packs[w].begin(), packs[w].end()).size(), packs[w].size());
    all.insert(packs[w].begin(), packs[w].end());
  }
  ASSERT_EQ(all.size(), experts);
}

std::vector<double> Skewed(std::mt19937& random, int32_t experts) {
  std::lognormal_distribution<double> skew(5, 1);
  std::vector<double> tokens(experts);
  for (double& t : tokens) t = skew(random);
  return tokens;
}

TEST(PackGreedily, FillsSlotsWithDistinctExperts) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 3000; ++trial) {
    const int32_t workers = 1 + random() % 6;
    const int32_t experts = 1 + random() % 12;
    const int32_t each = (experts + workers - 1) / workers + random() % 2;
    std::vector<int32_t> slots(workers, each);
    for (int32_t& s : slots) s += random() % 2;
    std::vector<double> tokens = Skewed(random, experts);
    if (trial % 3 == 0) std::fill(tokens.begin(), tokens.end(), 0);
    if (trial % 5 == 0) tokens[0] = 1e9;
    CheckPacks(PackGreedily(tokens, slots), slots, experts);
    if (HasFatalFailure()) FAIL() << trial;
  }
}

TEST(PackGreedily, GivesFastWorkersMore) {
  std::mt19937 random(8);
  const std::vector<double> tokens = Skewed(random, 64);
  const std::vector<int32_t> slots(8, 12);
  const std::vector<uint32_t> speed = {1, 1, 1, 1, 3, 3, 3, 3};
  const Packs packs = PackGreedily(tokens, slots, speed);
  CheckPacks(packs, slots, 64);
  EXPECT_LT(Imbalance({{tokens}, speed, {}}, packs), 1.5);
}

LayerProblem Problem(std::vector<std::vector<double>> tokens) { return {std::move(tokens), {}, {}}; }

TEST(ImprovePacks, KeepsInvariantsAndIsNoWorse) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 300; ++trial) {
    const int32_t workers = 2 + random() % 5;
    const int32_t experts = 4 + random() % 12;
    std::vector<int32_t> slots(workers, (experts + workers - 1) / workers + random() % 2);
    LayerProblem problem;
    // Scenarios without load are ignored; so many that their loads do not fit the smallest buffers.
    const int scenarios = trial % 10 == 0 ? 20 : 1 + trial % 6;
    for (int s = 0; s < scenarios; ++s) problem.tokens.push_back(Skewed(random, experts));
    problem.tokens.emplace_back(experts, 0);
    if (trial % 3 == 0) {
      for (int w = 0; w < workers; ++w) {
        problem.speed.push_back(1 + random() % 3);
        slots[w] += static_cast<int32_t>(random() % 2);
      }
    }
    if (trial % 4 == 0) problem.weight.assign(problem.tokens.size(), 1);
    Packs packs = PackGreedily(problem.tokens[0], slots, problem.speed);
    const Packs start = packs;
    Packs again = packs;
    const SearchOptions options{.proposals = 2000, .recount = trial % 2 == 0};
    ImprovePacks(problem, options, packs);
    CheckPacks(packs, slots, experts);
    if (HasFatalFailure()) FAIL() << trial;
    for (int w = 0; w < workers; ++w) ASSERT_EQ(packs[w].size(), start[w].size());
    ASSERT_LE(Imbalance(problem, packs), Imbalance(problem, start));
    ImprovePacks(problem, options, again);
    ASSERT_EQ(packs, again);
  }
}

// Every packing of the slots, workers in any order of experts.
double LeastImbalance(const LayerProblem& problem, std::span<const int32_t> slots) {
  const auto experts = static_cast<int32_t>(problem.tokens[0].size());
  Packs packs(slots.size());
  double least = 1e300;
  const std::function<void(size_t, int32_t)> fill = [&](size_t w, int32_t from) {
    if (w == slots.size()) {
      std::set<int32_t> all;
      for (const auto& pack : packs) all.insert(pack.begin(), pack.end());
      if (std::ssize(all) == experts) least = std::min(least, Imbalance(problem, packs));
      return;
    }
    if (std::ssize(packs[w]) == slots[w]) {
      fill(w + 1, 0);
      return;
    }
    for (int32_t e = from; e < experts; ++e) {
      packs[w].push_back(e);
      fill(w, e + 1);
      packs[w].pop_back();
    }
  };
  fill(0, 0);
  return least;
}

TEST(ImprovePacks, FindsTheBestOfSmallPackings) {
  std::mt19937 random(5);
  int best = 0;
  const int trials = 60;
  for (int trial = 0; trial < trials; ++trial) {
    const int32_t workers = 2 + random() % 2;
    const int32_t experts = 4 + random() % 3;
    std::vector<int32_t> slots(workers, (experts + workers - 1) / workers + 1);
    if (trial % 2 == 0) --slots[0];
    LayerProblem problem;
    for (int s = 0; s <= trial % 3; ++s) problem.tokens.push_back(Skewed(random, experts));
    if (trial % 4 == 0) problem.speed.assign({1, 2, 2});
    problem.speed.resize(problem.speed.empty() ? 0 : workers);
    if (trial % 5 == 0) problem.weight.assign(problem.tokens.size(), 2);
    Packs packs = PackGreedily(problem.tokens[0], slots, problem.speed);
    ImprovePacks(problem, {.proposals = 600'000}, packs);
    const double least = LeastImbalance(problem, slots);
    ASSERT_GE(Imbalance(problem, packs), least - 1e-9);
    best += Imbalance(problem, packs) <= std::max(least + 1e-9, 1.001);
  }
  EXPECT_GE(best, trials - 4);
}

TEST(ImprovePacks, FindsNearlyLevelPacks) {
  std::mt19937 random(3);
  const std::vector<double> tokens = Skewed(random, 64);
  const std::vector<int32_t> slots(8, 9);
  Packs packs = PackGreedily(tokens, slots);
  const double greedy = Imbalance(Problem({tokens}), packs);
  ImprovePacks(Problem({tokens}), {.proposals = 100'000}, packs);
  EXPECT_LT(Imbalance(Problem({tokens}), packs), greedy);
  EXPECT_LT(Imbalance(Problem({tokens}), packs), 1.003);
}

TEST(ImprovePacks, ServesTheWorstOfSeveralLoadsOrTheMeanByWeight) {
  std::mt19937 random(4);
  LayerProblem problem = Problem({Skewed(random, 64), Skewed(random, 64), Skewed(random, 64)});
  const std::vector<int32_t> slots(8, 9);
  std::vector<double> sum(64);
  for (int e = 0; e < 64; ++e) sum[e] = problem.tokens[0][e] + problem.tokens[1][e] + problem.tokens[2][e];
  const Packs start = PackGreedily(sum, slots);
  Packs worst = start;
  ImprovePacks(problem, {.proposals = 300'000}, worst);
  EXPECT_LT(Imbalance(problem, worst), 1.05);
  LayerProblem weighted = problem;
  weighted.weight = {10, 1, 1};
  Packs mean = start;
  ImprovePacks(weighted, {.proposals = 300'000}, mean);
  EXPECT_LT(Imbalance(weighted, mean), Imbalance(weighted, worst));
  EXPECT_LT(Imbalance(Problem({problem.tokens[0]}), mean), Imbalance(Problem({problem.tokens[0]}), worst));
}

}  // namespace
}  // namespace ballast
