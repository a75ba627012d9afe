#include "controller/rollout/traffic_effect.h"

#include <algorithm>

#include "controller/planner/grouping/homes.h"
#include "controller/planner/packs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

// One layer of four experts, two on each of two workers; task x chooses 0 and 1, task y 2 and 3 or 0 and 1.
Routes TwoTasks() {
  Routes routes{1, 4, 2, {}};
  routes.tasks.push_back({"y", 1, {{2, 3, 0, 1, 2, 3, 0, 1}}});
  routes.tasks.push_back({"x", 3, {{0, 1, 0, 1}}});
  return routes;
}

std::vector<DispatchTable> Table(const Packs& packs) {
  DispatchTable table = ToTable(packs, 4);
  std::fill(table.weight.begin(), table.weight.end(), 1);
  return {table};
}

TEST(Traffic, MixAndTasks_BeforeAndAfter) {
  v1::PlanEffect effect;
  SetTraffic(Table({{0, 2}, {1, 3}}), Table({{0, 1}, {2, 3}}), TwoTasks(), UniformTopology(2, 2, 2), effect);
  // Everything visits both workers, then one.
  EXPECT_DOUBLE_EQ(effect.traffic_before().hops_per_token(), 1);
  EXPECT_DOUBLE_EQ(effect.traffic_before().copies_per_token(), 1);
  EXPECT_DOUBLE_EQ(effect.traffic_before().cross_node_copies_per_token(), 1);
  EXPECT_DOUBLE_EQ(effect.traffic_before().maxvio(), 0);
  EXPECT_DOUBLE_EQ(effect.traffic_after().hops_per_token(), 0);
  EXPECT_DOUBLE_EQ(effect.traffic_after().copies_per_token(), .625);
  // Seven eighths of the pairs are on worker 0.
  EXPECT_DOUBLE_EQ(effect.traffic_after().maxvio(), .75);
  EXPECT_NEAR(effect.traffic_after().maxvio_solved_shares(), .75, 1e-9);
  ASSERT_EQ(effect.tasks_size(), 2);
  EXPECT_EQ(effect.tasks(0).task(), "x");
  EXPECT_DOUBLE_EQ(effect.tasks(0).mix_ratio(), .75);
  EXPECT_DOUBLE_EQ(effect.tasks(0).after().maxvio(), 1);
  EXPECT_DOUBLE_EQ(effect.tasks(1).after().maxvio(), 0);
  v1::PlanEffect first;
  SetTraffic({}, Table({{0, 1}, {2, 3}}), TwoTasks(), UniformTopology(2, 2, 2), first);
  EXPECT_FALSE(first.has_traffic_before());
  EXPECT_FALSE(first.tasks(0).has_before());
}

TEST(Traffic, TimeOfATokenAndWhatHomesSave) {
  const std::vector<DispatchTable> layers = Table({{0, 1}, {2, 3}});
  const Topology topology = UniformTopology(2, 2, 2);
  const std::vector<TaskHomes> homes = HomesOf(layers, TwoTasks(), topology);
  // x's three quarters start where both its experts are in two cases of three; y is at home on the other worker.
  EXPECT_NEAR(HomeSavings(layers, TwoTasks(), homes, topology), .75 * (2 / 3.0 - .5), 1e-9);
  EXPECT_EQ(HomeSavings(layers, TwoTasks(), {}, topology), 0);
  v1::Traffic traffic;
  traffic.set_copies_per_token(4);
  traffic.set_cross_node_copies_per_token(1);
  traffic.set_maxvio(.5);
  const CostModel model{
      .microseconds_per_token = 2, .microseconds_per_copy_node = 10, .microseconds_per_copy_cross_node = 100};
  EXPECT_DOUBLE_EQ(TokenMicroseconds(traffic, 6, 0, model), 18 + 30 + 100);
  EXPECT_DOUBLE_EQ(TokenMicroseconds(traffic, 6, 1, model), 18 + .75 * 130);
}

}  // namespace
}  // namespace ballast
