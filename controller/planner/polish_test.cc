#include "controller/planner/polish.h"

#include <algorithm>
#include <random>
#include <vector>

#include "controller/planner/alias.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(PolishForShares, LowersTheWorstScenarioAndKeepsEqualSplit) {
  std::mt19937 random(1);
  std::lognormal_distribution<double> skew(5, .8);
  int better = 0;
  for (int trial = 0; trial < 30; ++trial) {
    LayerProblem problem;
    for (int s = 0; s < 3; ++s) {
      problem.tokens.emplace_back(48);
      for (double& t : problem.tokens.back()) t = skew(random);
    }
    problem.tokens.emplace_back(48, 0);
    if (trial % 3 == 0) problem.speed = {1, 1, 1, 1, 2, 2, 2, 2};
    const std::vector<int32_t> slots(8, 7);
    Packs packs = PackGreedily(problem.tokens[0], slots, problem.speed);
    ImprovePacks(problem, {.proposals = 20'000}, packs);
    const Packs start = packs;
    const auto worst = [&](const Packs& p) {
      double most = 0;
      for (const auto& tokens : problem.tokens) {
        double total = 0;
        for (const double t : tokens) total += t;
        if (total > 0) most = std::max(most, SolvedLevel(p, tokens, problem.speed) / total);
      }
      return most;
    };
    PolishForShares(problem, {.tries = 1000, .slack = .01}, packs);
    ASSERT_LE(worst(packs), worst(start) * (1 + 1e-9));
    ASSERT_LE(Imbalance(problem, packs), Imbalance(problem, start) * 1.01 + 1e-9);
    better += worst(packs) < worst(start) * (1 - 1e-6);
    for (size_t w = 0; w < packs.size(); ++w) {
      std::vector<int32_t> sorted = packs[w];
      std::sort(sorted.begin(), sorted.end());
      ASSERT_EQ(std::adjacent_find(sorted.begin(), sorted.end()), sorted.end());
      ASSERT_EQ(packs[w].size(), start[w].size());
    }
    Packs again = start;
    PolishForShares(problem, {.tries = 1000, .slack = .01}, again);
    ASSERT_EQ(packs, again);
  }
  EXPECT_GT(better, 10);
}

}  // namespace
}  // namespace ballast
