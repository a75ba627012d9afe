#include "controller/planner/nodes.h"

#include <algorithm>
#include <random>

#include "controller/planner/level.h"
#include "controller/planner/score.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

DispatchTable Equal(const Packs& packs, int32_t experts) {
  DispatchTable table = ToTable(packs, experts);
  table.weight.assign(table.weight.size(), 1);
  return table;
}

TEST(CrossNodePart, ByHand) {
  const Topology topology = UniformTopology(4, 2, 4);  // w0, w1 | w2, w3
  const double tokens[] = {6, 2};
  // Of expert 0 half is on each node; expert 1 is on one, so half of its tokens cross.
  EXPECT_DOUBLE_EQ(CrossNodePart(Equal({{0}, {1}, {0}, {}}, 2), tokens, topology), 2. / 8 / 2);
  EXPECT_DOUBLE_EQ(CrossNodePart(Equal({{0}, {0}, {1}, {}}, 2), tokens, topology), .5);
  DispatchTable uneven = Equal({{0}, {1}, {0}, {}}, 2);
  uneven.weight[0] = 3;
  EXPECT_DOUBLE_EQ(CrossNodePart(uneven, tokens, topology), (6 * .25 + 2 * .5) / 8);
  EXPECT_DOUBLE_EQ(CrossNodePart(uneven, tokens, UniformTopology(4, 1, 4)), 0);
  const double none[] = {0, 0};
  EXPECT_DOUBLE_EQ(CrossNodePart(uneven, none, topology), 0);
}

TEST(SpreadOverNodes, PutsReplicasApart) {
  Packs packs = {{0, 2}, {0, 3}, {1, 4}, {1, 5}};
  const std::vector<double> tokens = {8, 8, 4, 4, 4, 4};
  SpreadOverNodes(Equal(packs, 6), tokens, UniformTopology(4, 2, 2), std::vector<int32_t>(4), nullptr, packs);
  for (const int32_t e : {0, 1}) {
    int on_first = 0;
    for (int w = 0; w < 2; ++w) on_first += static_cast<int>(std::count(packs[w].begin(), packs[w].end(), e));
    EXPECT_EQ(on_first, 1) << e;
  }
}

TEST(SpreadOverNodes, KeepsBalanceKindsAndWhatStays) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 200; ++trial) {
    const int32_t experts = 20;
    Topology topology = UniformTopology(8, 1 + random() % 4, 4);
    std::vector<double> tokens(experts);
    for (double& t : tokens) t = static_cast<double>(random() % 100);
    const Packs start = PlaceLevel(tokens, 8, 4);
    std::vector<int32_t> kind(8);
    for (int32_t& k : kind) k = static_cast<int32_t>(random() % 2);
    Packs packs = start;
    const DispatchTable before = Equal(start, experts);
    SpreadOverNodes(before, tokens, topology, kind, trial % 2 == 0 ? &before : nullptr, packs);
    const DispatchTable after = Equal(packs, experts);
    EXPECT_LE(CrossNodePart(after, tokens, topology), CrossNodePart(before, tokens, topology) + 1e-9);
    auto sorted = packs;
    auto sorted_start = start;
    std::sort(sorted.begin(), sorted.end());
    std::sort(sorted_start.begin(), sorted_start.end());
    EXPECT_EQ(sorted, sorted_start);
    for (int w = 0; w < 8; ++w) {
      const auto from = std::find(start.begin(), start.end(), packs[w]) - start.begin();
      EXPECT_EQ(kind[from], kind[w]);
    }
    if (trial % 2 == 0) {
      EXPECT_EQ(packs, start);
    }
  }
}

TEST(CostAwarePolicy, SendsFewerTokensAcrossNodesAtTheSameBalance) {
  std::mt19937 random(2);
  std::lognormal_distribution<double> skew(5, 1);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(2, 64)}};
  for (double& t : request.scenarios[0].load.tokens) t = skew(random);
  request.topology = UniformTopology(16, 1, 2 * 6);
  const auto flat = MakePlan(CostAwarePolicy(), request);
  ASSERT_TRUE(flat.ok()) << flat.status();
  request.topology = UniformTopology(16, 4, 2 * 6);
  const LoadScore unaware = ScoreLoad(flat->placement, request.scenarios[0], request.topology);
  const auto plan = MakePlan(CostAwarePolicy(), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_NEAR(plan->predicted[0].worst, 1, 1e-5);
  EXPECT_LT(plan->predicted[0].cross_node_part, unaware.cross_node_part);
  request.current = plan->placement;
  EXPECT_EQ(MakePlan(CostAwarePolicy(), request)->moves, 0);
}

}  // namespace
}  // namespace ballast
