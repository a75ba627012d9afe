#include "controller/planner/grouping/homes.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "controller/planner/grouping/grouping_test_util.h"
#include "controller/planner/grouping/hops.h"
#include "controller/planner/packs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;

// One layer of eight experts, two on each of four workers; each task's tokens choose two experts by turns.
Routes TwoTasks(double weight_a, double weight_b) {
  Routes routes{1, 8, 2, {}};
  routes.tasks.push_back({"b", weight_b, {{0, 1, 0, 1, 2, 3, 0, 1}}});
  routes.tasks.push_back({"a", weight_a, {{4, 5, 6, 7}}});
  return routes;
}

std::vector<DispatchTable> FourWorkers() {
  DispatchTable table = ToTable({{0, 1}, {2, 3}, {4, 5}, {6, 7}}, 8);
  std::fill(table.weight.begin(), table.weight.end(), 1);
  return {table};
}

TEST(Homes, WhereTheirExpertsAre_EveryWorkerItsPart) {
  const auto homes = HomesOf(FourWorkers(), TwoTasks(1, 1), UniformTopology(4, 1, 2));
  ASSERT_EQ(homes.size(), 2u);
  EXPECT_EQ(homes[0].task, "a");
  EXPECT_THAT(homes[0].homes, ElementsAre(TaskHome{2, 8, .5}, TaskHome{3, 8, .5}));
  EXPECT_THAT(homes[1].homes, ElementsAre(TaskHome{0, 8, .75}, TaskHome{1, 8, .25}));
}

TEST(Homes, PartsFollowTheMixAndSpeeds) {
  // Three quarters of the tokens are a's: it overflows to where b would have been at home.
  const auto homes = HomesOf(FourWorkers(), TwoTasks(3, 1), UniformTopology(4, 1, 2));
  EXPECT_THAT(homes[0].homes, ElementsAre(TaskHome{2, 8, .5}, TaskHome{3, 8, .5}, TaskHome{1, 8, 0}));
  EXPECT_THAT(homes[1].homes, ElementsAre(TaskHome{0, 8, .75}));
  Topology topology = UniformTopology(4, 1, 2);
  topology.workers[0].speed = 3;
  const auto fast = HomesOf(FourWorkers(), TwoTasks(1, 1), topology);
  EXPECT_EQ(fast[1].homes[0].worker, 0);
  EXPECT_EQ(fast[1].homes[0].weight, 16u);
  // A task with next to nothing has a home, too.
  const auto tiny = HomesOf(FourWorkers(), TwoTasks(1, 1e-6), UniformTopology(4, 1, 2));
  EXPECT_THAT(tiny[1].homes, ElementsAre(TaskHome{0, 1, .75}));
}

// Against every assignment of three tasks' equal parts to three workers.
TEST(Homes, SaveMost) {
  for (uint32_t seed = 1; seed <= 5; ++seed) {
    const Routes routes = RandomRoutes(
        {.layers = 2, .experts = 9, .top_k = 2, .tasks = 3, .tokens = 60, .community = 3, .together = .8}, seed);
    std::vector<DispatchTable> layers;
    for (uint32_t l = 0; l < 2; ++l) {
      layers.push_back(ToTable(RandomPacks(9, 3, seed + l), 9));
      std::fill(layers[l].weight.begin(), layers[l].weight.end(), 1);
    }
    const auto homes = HomesOf(layers, routes, UniformTopology(3, 1, 6));
    double found = 0;
    std::map<int32_t, uint32_t> parts;
    for (const TaskHomes& task : homes) {
      for (const TaskHome& home : task.homes) {
        found += home.weight * home.copies_saved_per_token;
        parts[home.worker] += home.weight;
      }
    }
    for (const auto& [worker, weight] : parts) EXPECT_EQ(weight, 8u);
    // What tokens save that all start on one worker.
    std::vector<std::vector<double>> saved(3, std::vector<double>(3));
    for (int32_t f = 0; f < 3; ++f) {
      for (int32_t l = 0; l < 2; ++l) {
        const auto& experts = routes.tasks[f].experts[l];
        for (size_t at = 0; at < experts.size(); at += 2) {
          for (int32_t w = 0; w < 3; ++w) {
            const auto on = [&](int32_t e) { return layers[l].rank[layers[l].begin[e]] == w; };
            saved[f][w] += (on(experts[at]) || on(experts[at + 1])) / 60.0;
          }
        }
      }
    }
    std::vector<int32_t> order = {0, 1, 2};
    double best = 0;
    do {
      best = std::max(best, 8 * (saved[0][order[0]] + saved[1][order[1]] + saved[2][order[2]]));
    } while (std::next_permutation(order.begin(), order.end()));
    EXPECT_NEAR(found, best, 1e-3);
  }
}

}  // namespace
}  // namespace ballast
