#include "controller/planner/budget.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "controller/planner/level.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

double Least(const std::vector<std::vector<double>>& cost, std::span<const int32_t> sizes, size_t layer,
             int64_t budget) {
  if (layer == cost.size()) return 0;
  double best = 1e300;
  for (size_t j = 0; j < sizes.size(); ++j) {
    if (sizes[j] <= budget) best = std::min(best, cost[layer][j] + Least(cost, sizes, layer + 1, budget - sizes[j]));
  }
  return best;
}

TEST(AllocateReplicas, IsOptimal) {
  std::mt19937 random(1);
  const std::vector<int32_t> sizes = {0, 1, 2, 4, 8};
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<std::vector<double>> cost(1 + random() % 5, std::vector<double>(sizes.size()));
    for (auto& row : cost) {
      for (double& c : row) c = static_cast<double>(random() % 100);
      std::sort(row.rbegin(), row.rend());
    }
    const int64_t budget = random() % 40;
    const std::vector<int32_t> out = AllocateReplicas(cost, sizes, budget);
    double sum = 0;
    for (size_t l = 0; l < cost.size(); ++l) {
      // What is left over only adds: the size that it lies at or above.
      const auto at = std::upper_bound(sizes.begin(), sizes.end(), out[l]) - sizes.begin() - 1;
      sum += cost[l][at];
    }
    ASSERT_LE(sum, Least(cost, sizes, 0, budget) + 1e-9);
    const int64_t used = std::accumulate(out.begin(), out.end(), int64_t{0});
    ASSERT_EQ(used, std::min<int64_t>(budget, 8 * static_cast<int64_t>(cost.size())));
  }
}

TEST(SpreadSlots, IsEvenWithinLayersAndOverall) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 2000; ++trial) {
    const int32_t workers = 1 + random() % 9;
    std::vector<int32_t> replicas(1 + random() % 6);
    for (int32_t& r : replicas) r = static_cast<int32_t>(random() % 40);
    const int32_t all = std::accumulate(replicas.begin(), replicas.end(), 0);
    std::vector<int32_t> totals(workers, all / workers);
    for (int32_t w = 0; w < all % workers; ++w) ++totals[w];
    const auto slots = SpreadSlots(replicas, totals, 40);
    std::vector<int32_t> sum(workers);
    for (size_t l = 0; l < replicas.size(); ++l) {
      ASSERT_EQ(std::accumulate(slots[l].begin(), slots[l].end(), 0), replicas[l]);
      const auto [least, most] = std::minmax_element(slots[l].begin(), slots[l].end());
      ASSERT_LE(*most - *least, all % workers == 0 ? 1 : 2);
      for (int32_t w = 0; w < workers; ++w) sum[w] += slots[l][w];
    }
    ASSERT_EQ(sum, totals);
  }
}

TEST(SpreadSlots, NeverGivesAWorkerMoreThanItsTotal) {
  std::mt19937 random(4);
  int fewer = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const int32_t workers = 2 + random() % 4, experts = 1 + random() % 6;
    const auto layers = static_cast<int32_t>(1 + random() % 6);
    std::vector<int32_t> totals(workers);
    int32_t all = 0;
    while (all < layers * experts) {
      const size_t w = random() % totals.size();
      const int32_t more = std::min<int32_t>(1 + random() % 20, layers * experts - totals[w]);
      totals[w] += more;
      all += more;
    }
    std::vector<int32_t> replicas(layers, experts);
    for (int32_t left = all - layers * experts; left > 0; --left) {
      const size_t l = random() % replicas.size();
      replicas[l] += replicas[l] < workers * experts ? 1 : 0;
    }
    const auto slots = SpreadSlots(replicas, totals, experts);
    std::vector<int32_t> sum(workers);
    for (int32_t l = 0; l < layers; ++l) {
      const int32_t has = std::accumulate(slots[l].begin(), slots[l].end(), 0);
      ASSERT_LE(has, replicas[l]) << trial;
      ASSERT_GE(has, experts) << trial;
      fewer += has < replicas[l] ? 1 : 0;
      for (int32_t w = 0; w < workers; ++w) {
        ASSERT_GE(slots[l][w], 0) << trial;
        ASSERT_LE(slots[l][w], experts) << trial;
        sum[w] += slots[l][w];
      }
    }
    for (int32_t w = 0; w < workers; ++w) ASSERT_LE(sum[w], totals[w]) << trial;
  }
  // Where it has to be.
  EXPECT_GT(fewer, 0);
  EXPECT_LT(fewer, 2000);
}

TEST(SpreadSlots, FollowsUnequalTotals) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 2000; ++trial) {
    const int32_t workers = 1 + random() % 9;
    std::vector<int32_t> totals(workers);
    for (int32_t& t : totals) t = static_cast<int32_t>(random() % 30);
    const int32_t all = std::accumulate(totals.begin(), totals.end(), 0);
    std::vector<int32_t> replicas(1 + random() % 6);
    for (int32_t i = 0; i < all; ++i) ++replicas[random() % replicas.size()];
    const auto slots = SpreadSlots(replicas, totals, 60);
    std::vector<int32_t> sum(workers);
    for (size_t l = 0; l < replicas.size(); ++l) {
      ASSERT_EQ(std::accumulate(slots[l].begin(), slots[l].end(), 0), replicas[l]);
      for (int32_t w = 0; w < workers; ++w) {
        const double part = static_cast<double>(totals[w]) * replicas[l] / std::max(all, 1);
        ASSERT_NEAR(slots[l][w], part, 2.01) << trial;
        sum[w] += slots[l][w];
      }
    }
    ASSERT_EQ(sum, totals) << trial;
  }
}

TEST(ReplicaSizes, GrowBySteps) {
  EXPECT_THAT(ReplicaSizes(16), ElementsAre(0, 1, 2, 3, 4, 6, 8, 12, 16));
  EXPECT_THAT(ReplicaSizes(5), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(ReplicaSizes(0), ElementsAre(0));
}

// Layer 0 is flat, layer 1 has one expert with half of all tokens.
PlanRequest TwoLayers() {
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(2, 16)}};
  for (int32_t e = 0; e < 16; ++e) {
    request.scenarios[0].load.layer(0)[e] = 100;
    request.scenarios[0].load.layer(1)[e] = e == 0 ? 1500 : 100;
  }
  request.topology = UniformTopology(4, 1, 8 + 1);
  request.replicas_per_worker = 1;
  return request;
}

int32_t Replicas(const Placement& placement, int32_t layer) {
  return static_cast<int32_t>(std::count_if(placement.replicas.begin(), placement.replicas.end(),
                                            [&](const Replica& r) { return r.expert.layer == layer; }));
}

TEST(Budget, GoesWhereItHelps) {
  const PlanRequest request = TwoLayers();
  const CostAwarePolicy ours(20'000);
  const CraftPolicy craft;
  for (const PlannerPolicy* policy : std::initializer_list<const PlannerPolicy*>{&ours, &craft}) {
    const auto plan = MakePlan(*policy, request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->placement.replicas.size(), 36u) << policy->name();
    EXPECT_GE(Replicas(plan->placement, 1), 19) << policy->name();
    EXPECT_GT(plan->predicted[0].worst, .8) << policy->name();
  }
}

TEST(Budget, NamesWhatIsWrong) {
  PlanRequest request = TwoLayers();
  request.replicas_per_worker = -1;
  EXPECT_THAT(MakePlan(CraftPolicy(), request).status().ToString(), HasSubstr("replicas_per_worker: -1"));
  request.replicas_per_worker = 2;
  EXPECT_THAT(MakePlan(CostAwarePolicy(), request).status().ToString(),
              HasSubstr("are 40 slots; the 4 workers have room for 36 beside staging"));
  request.replicas_per_worker.reset();
  EXPECT_THAT(MakePlan(CraftPolicy(), request).status().ToString(), HasSubstr("replicas_per_worker: is missing"));
}

TEST(CostAwarePolicy, OnePlacementForSeveralLoads) {
  std::mt19937 random(3);
  std::lognormal_distribution<double> skew(5, 1);
  PlanRequest request;
  for (const char* name : {"a", "b"}) {
    request.scenarios.push_back({name, 1, LoadMatrix(1, 64)});
    for (double& t : request.scenarios.back().load.tokens) t = std::floor(skew(random));
  }
  request.topology = UniformTopology(8, 1, 9);
  const auto plan = MakePlan(CostAwarePolicy(), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (const LoadScore& score : plan->predicted) {
    EXPECT_GT(score.balancedness, .95);
    EXPECT_GE(score.balancedness_solved, score.balancedness - 1e-9);
  }
}

}  // namespace
}  // namespace ballast
