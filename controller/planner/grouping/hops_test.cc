#include "controller/planner/grouping/hops.h"

#include <algorithm>
#include <string>
#include <vector>

#include "controller/planner/grouping/grouping_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

DispatchTable Table(const Packs& packs, int32_t experts) {
  DispatchTable table = ToTable(packs, experts);
  std::fill(table.weight.begin(), table.weight.end(), 1);
  return table;
}

// One task, one layer, the tokens given.
Routes OneLayer(int32_t experts, int32_t top_k, std::vector<int32_t> tokens) {
  return {1, experts, top_k, {{"t", 1, {std::move(tokens)}}}};
}

TEST(RandomPlacement, PublishedSizes) {
  // 64 experts, 6 a token, 16 workers, 27 layers: 116.5 hops; 60 experts, 4 a token, 24 layers: 65.31.
  const std::vector<int32_t> four(16, 4);
  EXPECT_NEAR(27 * RandomPlacementHops(four, 6), 116.5, .05);
  EXPECT_NEAR(26 * RandomPlacementHops(four, 6), 112.2, .05);
  std::vector<int32_t> uneven;
  for (int32_t i = 0; i < 4; ++i) uneven.insert(uneven.end(), {4, 4, 4, 3});
  EXPECT_NEAR(24 * RandomPlacementHops(uneven, 4), 65.31, .01);
  EXPECT_NEAR(RandomPlacementHops(std::vector<int32_t>{5}, 3), 0, 1e-12);
}

TEST(ScoreHops, RandomPlacementMeetsTheFormula) {
  const Routes routes = RandomRoutes({.layers = 8, .experts = 32, .top_k = 4, .tasks = 2, .tokens = 2000}, 1);
  const Topology topology = UniformTopology(8, 2, 64);
  std::vector<DispatchTable> layers;
  for (int32_t l = 0; l < 8; ++l) layers.push_back(Table(RandomPacks(32, 8, 100 + l), 32));
  const std::vector<HopScore> scores = ScoreHops(layers, routes, topology);
  const double expected = 8 * RandomPlacementHops(std::vector<int32_t>(8, 4), 4);
  EXPECT_NEAR(scores[0].hops, expected, .01 * expected);
  // Its home is any of the eight workers, and any of two nodes.
  EXPECT_NEAR(scores[0].copies, (expected + 8) * 7 / 8, .01 * expected);
  EXPECT_NEAR(scores[0].cross_node, (expected + 8) / 2, .01 * expected);
}

TEST(ScoreHops, CountsByHand) {
  const Topology topology = UniformTopology(2, 2, 8);
  // Experts 0, 1 on worker 0 and 2, 3 on worker 1. Token 0 is at home on worker 0, token 1 on worker 1.
  const std::vector<DispatchTable> layers = {Table({{0, 1}, {2, 3}}, 4)};
  const auto scores = ScoreHops(layers, OneLayer(4, 2, {0, 1, 0, 2}), topology);
  ASSERT_EQ(scores.size(), 2);
  EXPECT_EQ(scores[1].task, "t");
  for (const HopScore& score : scores) {
    EXPECT_DOUBLE_EQ(score.hops, .5);
    EXPECT_DOUBLE_EQ(score.copies, .5);
    EXPECT_DOUBLE_EQ(score.cross_node, .5);
    // Loads 3 and 1.
    EXPECT_DOUBLE_EQ(score.balance.maxvio_layer, .5);
    EXPECT_DOUBLE_EQ(score.balance.jain_layer, .8);
    EXPECT_DOUBLE_EQ(score.balance.maxvio_all, .5);
  }
}

TEST(ScoreHops, TasksCountByWeightNotByTokens) {
  const Topology topology = UniformTopology(2, 1, 8);
  const std::vector<DispatchTable> layers = {Table({{0, 1}, {2, 3}}, 4)};
  Routes routes{1, 4, 2, {{"near", 1, {{0, 1, 0, 1, 0, 1, 0, 1}}}, {"far", 3, {{0, 2}}}}};
  const auto scores = ScoreHops(layers, routes, topology);
  EXPECT_DOUBLE_EQ(scores[1].hops, 0);
  EXPECT_DOUBLE_EQ(scores[2].hops, 1);
  EXPECT_DOUBLE_EQ(scores[0].hops, .75);
  // Worker 0 gets 1/4 of the mix from the one and 3/8 from the other.
  EXPECT_DOUBLE_EQ(scores[0].balance.maxvio_layer, .25);
}

TEST(ScoreHops, ReplicasAreUsedWhereTheTokenIs) {
  const Topology topology = UniformTopology(2, 1, 8);
  const std::vector<DispatchTable> layers = {Table({{0, 1, 4}, {2, 3, 4}}, 5)};
  const auto scores = ScoreHops(layers, OneLayer(5, 2, {0, 4, 1, 4, 2, 4, 3, 4}), topology);
  EXPECT_DOUBLE_EQ(scores[0].hops, 0);
  EXPECT_DOUBLE_EQ(scores[0].balance.maxvio_layer, 0);
}

TEST(ScoreHops, WorkersNamesDoNotMatter) {
  const Routes routes = RandomRoutes({.layers = 3, .experts = 16, .tasks = 3, .tokens = 300, .together = .7}, 2);
  const Topology topology = UniformTopology(4, 1, 64);
  std::vector<DispatchTable> layers, renamed;
  for (int32_t l = 0; l < 3; ++l) {
    Packs packs = RandomPacks(16, 4, 7 + l);
    layers.push_back(Table(packs, 16));
    std::rotate(packs.begin(), packs.begin() + 1 + l % 3, packs.end());
    renamed.push_back(Table(packs, 16));
  }
  const auto a = ScoreHops(layers, routes, topology), b = ScoreHops(renamed, routes, topology);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_DOUBLE_EQ(a[i].hops, b[i].hops);
    EXPECT_NEAR(a[i].balance.maxvio_layer, b[i].balance.maxvio_layer, 1e-12);
    EXPECT_NEAR(a[i].balance.jain_layer, b[i].balance.jain_layer, 1e-12);
    // What is summed over layers changes with the names: why it is not what to judge by.
    EXPECT_NE(a[i].balance.maxvio_all, b[i].balance.maxvio_all);
  }
}

TEST(ScoreHops, StepsKeepTheShares) {
  const Routes routes = RandomRoutes({.experts = 8, .top_k = 2, .tokens = 3000, .together = .5}, 3);
  const Topology topology = UniformTopology(4, 1, 16);
  DispatchTable table = Table({{0, 1, 2}, {3, 4, 0}, {5, 6, 1}, {7, 2, 3}}, 8);
  const auto whole = ScoreHops({{table}}, routes, topology), steps = ScoreHops({{table}}, routes, topology, 64);
  EXPECT_NEAR(whole[0].balance.jain_layer, steps[0].balance.jain_layer, .01);
  EXPECT_NEAR(whole[0].hops, steps[0].hops, .1);
}

TEST(Routes, Validate) {
  const Routes good = RandomRoutes({.layers = 2}, 4);
  EXPECT_TRUE(Validate(good).ok());
  const struct {
    void (*spoil)(Routes&);
    const char* says;
  } cases[] = {
      {[](Routes& r) { r.top_k = 0; }, "top_k 0"},
      {[](Routes& r) { r.tasks[1].name = "task0"; }, "two of that name"},
      {[](Routes& r) { r.tasks[1].weight = 0; }, "task1: weight 0"},
      {[](Routes& r) { r.tasks[1].experts.pop_back(); }, "task1: 1 layers, others have 2"},
      {[](Routes& r) { r.tasks[0].experts[1].pop_back(); }, "no multiple of top_k 4"},
      {[](Routes& r) { r.tasks[0].experts[1][9] = 16; }, "layer 1, token 2: expert 16 is not below 16"},
      {[](Routes& r) { r.tasks[0].experts[1][8] = r.tasks[0].experts[1][9]; }, "token 2: expert"},
      {[](Routes& r) { r.tasks.clear(); }, "layer 0: no task has tokens"},
  };
  for (const auto& c : cases) {
    Routes routes = good;
    c.spoil(routes);
    const absl::Status status = Validate(routes);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(c.says));
  }
}

TEST(Routes, LoadsAndMix) {
  const Routes routes{1, 3, 2, {{"a", 1, {{0, 1, 0, -1}}}, {"b", 1, {{2, 1}}}}};
  const std::vector<Scenario> loads = LoadsByTask(routes);
  ASSERT_EQ(loads.size(), 2);
  EXPECT_EQ(loads[0].name, "a");
  EXPECT_THAT(loads[0].load.tokens, ElementsAre(2, 1, 0));
  EXPECT_THAT(loads[1].load.tokens, ElementsAre(0, 1, 1));
  EXPECT_THAT(MixLoad(LayerOf(routes, 0)), ElementsAre(1. / 3, 1. / 6 + .25, .25));
}

}  // namespace
}  // namespace ballast
