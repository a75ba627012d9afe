#include "controller/planner/score.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

DispatchTable Table(const std::vector<std::vector<int32_t>>& workers_of_expert) {
  DispatchTable table;
  table.begin = {0};
  for (const auto& workers : workers_of_expert) {
    table.rank.insert(table.rank.end(), workers.begin(), workers.end());
    table.begin.push_back(static_cast<int32_t>(table.rank.size()));
  }
  table.weight.assign(table.rank.size(), 1);
  return table;
}

TEST(ScoreLayer, ByHand) {
  DispatchTable table = Table({{0, 1}, {0}, {1}});
  table.weight[1] = 3;
  const double tokens[] = {8, 4, 0};
  const LayerScore score = ScoreLayer(table, tokens, UniformTopology(2, 1, 4));
  EXPECT_DOUBLE_EQ(score.balancedness, 1);                // 2 + 4, 6
  EXPECT_DOUBLE_EQ(score.balancedness_equal_split, .75);  // 4 + 4, 4
  EXPECT_DOUBLE_EQ(score.balancedness_solved, 1);
  EXPECT_DOUBLE_EQ(score.upper_bound, 1);
  EXPECT_DOUBLE_EQ(score.busiest, 6);
  EXPECT_DOUBLE_EQ(score.maxvio, 0);
  EXPECT_DOUBLE_EQ(score.jain, 1);
}

TEST(ScoreLayer, UnsolvedAllButSolvedSharesIsTheSame) {
  // Solved, 6 and 6; by weights 7 and 5, by equal split 8 and 4.
  DispatchTable table = Table({{0, 1}, {0}, {1}});
  table.weight = {3, 5, 1, 1};
  const double tokens[] = {8, 4, 0};
  const Topology topology = UniformTopology(2, 1, 4);
  LayerScorer scorer(topology);
  LayerScore unsolved = scorer.ScoreUnsolved(table, tokens);
  EXPECT_DOUBLE_EQ(unsolved.balancedness_solved, 6. / 7);
  EXPECT_DOUBLE_EQ(unsolved.busiest_solved, 7);
  const LayerScore solved = scorer.Score(table, tokens);
  EXPECT_DOUBLE_EQ(solved.balancedness_solved, 1);
  EXPECT_DOUBLE_EQ(solved.busiest_solved, 6);
  EXPECT_DOUBLE_EQ(unsolved.balancedness, solved.balancedness);
  EXPECT_DOUBLE_EQ(unsolved.balancedness_equal_split, solved.balancedness_equal_split);
  EXPECT_DOUBLE_EQ(unsolved.busiest_equal_split, 8);
  EXPECT_DOUBLE_EQ(unsolved.upper_bound, solved.upper_bound);
  // What is known need not be solved; here it is not true.
  EXPECT_DOUBLE_EQ(scorer.Score(table, tokens, .9).busiest_solved, 6 / .9);
  EXPECT_FALSE(SplitsEqually(table));
  table.weight = {1, 1, 1, 1};
  EXPECT_TRUE(SplitsEqually(table));
  EXPECT_DOUBLE_EQ(scorer.Score(table, tokens).busiest_equal_split, 8);
}

TEST(ScoreLayer, SpeedsCount) {
  Topology topology = UniformTopology(2, 1, 4);
  topology.workers[1].speed = 3;
  const double tokens[] = {1, 3};
  EXPECT_DOUBLE_EQ(ScoreLayer(Table({{0}, {1}}), tokens, topology).balancedness, 1);
  EXPECT_DOUBLE_EQ(ScoreLayer(Table({{1}, {0}}), tokens, topology).balancedness, 1. / 3);
}

TEST(ScoreLoad, LayersWithoutLoadAreLevelAndLeftOutOfMeans) {
  Placement p;
  p.num_layers = 2;
  p.num_experts = 2;
  p.workers = {"w0", "w1"};
  p.replicas = {{{0, 0}, 0, 0}, {{0, 1}, 1, 0}, {{1, 0}, 0, 1}, {{1, 1}, 1, 1}};
  Scenario s{"x", 1, LoadMatrix(2, 2)};
  s.load.tokens = {0, 0, 3, 1};
  const LoadScore score = ScoreLoad(p, s, UniformTopology(2, 1, 2));
  EXPECT_DOUBLE_EQ(score.layers[0].balancedness, 1);
  EXPECT_NEAR(score.balancedness, 2. / 3, 1e-12);
  EXPECT_EQ(score.worst_layer, 1);
  EXPECT_DOUBLE_EQ(score.busiest, 3);
}

// Every placement of `experts` on `workers` with `slots` each, distinct workers, at most `slots` a worker.
void EveryPlacement(int32_t e, std::vector<std::vector<int32_t>>& at, std::vector<int32_t>& room, int32_t replicas,
                    const std::function<void()>& visit) {
  if (e == static_cast<int32_t>(at.size())) {
    if (replicas == 0) visit();
    return;
  }
  const auto workers = static_cast<uint32_t>(room.size());
  for (uint32_t set = 1; set < (1u << workers); ++set) {
    if (std::popcount(set) > replicas) continue;
    bool fits = true;
    at[e].clear();
    for (uint32_t w = 0; w < workers; ++w) {
      if ((set >> w) & 1) {
        at[e].push_back(static_cast<int32_t>(w));
        fits &= room[w] > 0;
      }
    }
    if (!fits) continue;
    for (const int32_t w : at[e]) --room[w];
    const std::vector<int32_t> mine = at[e];
    EveryPlacement(e + 1, at, room, replicas - std::popcount(set), visit);
    at[e] = mine;
    for (const int32_t w : mine) ++room[w];
  }
}

TEST(UpperBound, NoPlacementIsAboveIt) {
  std::mt19937 random(4);
  int tight = 0;
  const int trials = 150;
  for (int trial = 0; trial < trials; ++trial) {
    const int32_t workers = 2 + random() % 2;
    const int32_t experts = 2 + random() % (2 * workers - 2);
    const int32_t slots = std::max(1 + static_cast<int32_t>(random() % 2), (experts + workers - 1) / workers);
    const int32_t replicas = std::min(slots * workers, experts * workers);
    std::vector<double> tokens(experts);
    for (double& t : tokens) t = static_cast<double>(random() % 3 == 0 ? random() % 1000 : random() % 50);
    if (std::accumulate(tokens.begin(), tokens.end(), 0.0) == 0) continue;
    double best = 0;
    std::vector<std::vector<int32_t>> at(experts);
    std::vector<int32_t> room(workers, slots);
    EveryPlacement(0, at, room, replicas, [&] {
      best = std::max(best, ScoreLayer(Table(at), tokens, UniformTopology(workers, 1, slots)).balancedness_solved);
    });
    const double bound = UpperBound(tokens, replicas, workers);
    ASSERT_LE(best, bound + 1e-9) << trial;
    tight += best > bound - 1e-9;
  }
  EXPECT_GT(tight, trials / 2);
}

TEST(Onto, RenumbersAndLeavesOut) {
  Placement p;
  p.num_layers = 1;
  p.num_experts = 2;
  p.workers = {"w1", "x", "w0"};
  p.replicas = {{{0, 0}, 0, 0}, {{0, 0}, 1, 0}, {{0, 1}, 2, 0}};
  const auto layers = Onto(p, UniformTopology(2, 1, 1));
  EXPECT_THAT(layers[0].begin, ElementsAre(0, 1, 2));
  EXPECT_THAT(layers[0].rank, ElementsAre(1, 0));
}

}  // namespace
}  // namespace ballast
