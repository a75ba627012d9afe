#include "controller/planner/node_limited.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

PlanRequest Request(int32_t layers, int32_t experts, int32_t workers, int32_t nodes, int32_t slots, unsigned seed) {
  std::mt19937 random(seed);
  std::lognormal_distribution<double> tokens(4, 1);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(layers, experts)}};
  for (double& t : request.scenarios[0].load.tokens) t = tokens(random);
  request.topology = UniformTopology(workers, nodes, slots * layers);
  return request;
}

double MostLoaded(std::span<const double> load, std::span<const int32_t> node, int32_t nodes) {
  std::vector<double> sum(nodes);
  for (size_t g = 0; g < load.size(); ++g) sum[node[g]] += load[g];
  return *std::max_element(sum.begin(), sum.end());
}

TEST(GroupsToNodes, IsNoWorseThanGreedyAndNearTheBest) {
  std::mt19937 random(1);
  std::lognormal_distribution<double> tokens(3, 1);
  double ours = 0;
  double best_of_all = 0;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<double> load(8);
    for (double& t : load) t = tokens(random);
    const std::vector<float> narrow(load.begin(), load.end());
    const std::vector<int32_t> node = GroupsToNodes(std::vector<std::vector<double>>{load}, 4);
    for (int32_t n = 0; n < 4; ++n) ASSERT_EQ(std::count(node.begin(), node.end(), n), 2);
    const double most = MostLoaded(load, node, 4);
    ASSERT_LE(most, MostLoaded(load, BalancedPacking(narrow, 4).pack, 4) * (1 + 1e-6));
    std::vector<int32_t> any = {0, 0, 1, 1, 2, 2, 3, 3};
    double best = most;
    do {
      best = std::min(best, MostLoaded(load, any, 4));
    } while (std::next_permutation(any.begin(), any.end()));
    ours += most;
    best_of_all += best;
  }
  EXPECT_LT(ours, best_of_all * 1.02);
}

TEST(GroupsToNodes, ServesTheWorstOfSeveralLoads) {
  // Their sum is level either way; each alone is not.
  const std::vector<std::vector<double>> loads = {{10, 10, 1, 1}, {1, 1, 10, 10}, {0, 0, 0, 0}};
  const std::vector<int32_t> node = GroupsToNodes(loads, 2);
  EXPECT_NE(node[0], node[1]);
  EXPECT_NE(node[2], node[3]);
}

TEST(NodeLimitedPolicy, KeepsGroupsWholeAndLevelsEachNode) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const PlanRequest request = Request(3, 64, 8, 4, 10, seed);
    const CostAwarePolicy inner;
    const auto tables = NodeLimitedPolicy(inner, 8).Place(request);
    ASSERT_TRUE(tables.ok()) << tables.status();
    for (const DispatchTable& table : *tables) {
      ASSERT_EQ(table.num_replicas(), 80);
      std::vector<int32_t> node_of_group(8, -1);
      for (int32_t e = 0; e < 64; ++e) {
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
          int32_t& node = node_of_group[e / 8];
          if (node < 0) node = table.rank[r] / 2;
          ASSERT_EQ(table.rank[r] / 2, node);
        }
      }
    }
    const auto plan = MakePlan(NodeLimitedPolicy(inner, 8), request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    // Shares make each node level, so the busiest worker is a share of the busiest node.
    for (int32_t l = 0; l < 3; ++l) {
      const DispatchTable& table = (*tables)[l];
      std::vector<double> nodes(4);
      for (int32_t e = 0; e < 64; ++e) {
        nodes[table.rank[table.begin[e]] / 2] += request.scenarios[0].load.layer(l)[e];
      }
      EXPECT_NEAR(plan->predicted[0].layers[l].busiest, *std::max_element(nodes.begin(), nodes.end()) / 2, 1e-3);
    }
  }
}

TEST(NodeLimitedPolicy, IsBetterThanEplbWithEqualSplit) {
  double ours = 0;
  double published = 0;
  const CostAwarePolicy inner(20'000, CostAwarePolicy::Split::kEqual);
  for (unsigned seed = 0; seed < 10; ++seed) {
    const PlanRequest request = Request(1, 64, 8, 4, 10, seed);
    const auto tokens = request.scenarios[0].load.layer(0);
    ours += MakePlan(NodeLimitedPolicy(inner, 8), request)->predicted[0].balancedness;
    // The published placement itself, experts twice on a worker included: EplbPolicy moves these across nodes.
    const std::vector<float> narrow(tokens.begin(), tokens.end());
    const std::vector<int32_t> physical = RebalanceExperts(narrow, 80, 8, 4, 8);
    std::vector<double> load(8);
    for (int32_t p = 0; p < 80; ++p) {
      const auto count = std::count(physical.begin(), physical.end(), physical[p]);
      load[p / 10] += tokens[physical[p]] / static_cast<double>(count);
    }
    published += Balancedness(load);
  }
  EXPECT_GT(ours, published);
}

TEST(NodeLimitedPolicy, KeepsWhatItCanInPlace) {
  PlanRequest request = Request(2, 32, 8, 2, 6, 7);
  const CostAwarePolicy inner;
  const NodeLimitedPolicy policy(inner, 4);
  const auto plan = MakePlan(policy, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  request.current = plan->placement;
  EXPECT_EQ(MakePlan(policy, request)->moves, 0);
}

TEST(NodeLimitedPolicy, SaysWhatIsWrong) {
  const CostAwarePolicy inner;
  EXPECT_THAT(NodeLimitedPolicy(inner, 5).Place(Request(1, 12, 4, 2, 4, 0)).status().ToString(),
              HasSubstr("groups: 5; must divide the 12 experts"));
  EXPECT_THAT(NodeLimitedPolicy(inner, 3).Place(Request(1, 12, 4, 2, 4, 0)).status().ToString(),
              HasSubstr("groups: 3; the 2 nodes must divide them"));
  EXPECT_THAT(NodeLimitedPolicy(inner, 4).Place(Request(1, 12, 5, 2, 4, 0)).status().ToString(),
              HasSubstr("nodes must be consecutive blocks"));
  EXPECT_FALSE(NodeLimitedPolicy(inner, 4).Place(Request(1, 12, 4, 2, 2, 0)).ok());
}

}  // namespace
}  // namespace ballast
