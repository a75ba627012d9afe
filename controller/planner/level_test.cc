#include "controller/planner/level.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "controller/planner/budget.h"
#include "controller/planner/load_test_util.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(CostAwarePolicy, PlansAreLevelAndKeepWhatTheyCan) {
  std::mt19937 random(3);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(4, 24)}};
  request.scenarios[0].load.tokens = RandomTokens(random, 4 * 24);
  request.topology = UniformTopology(4, 1, 4 * 7);
  const auto plan = MakePlan(CostAwarePolicy(), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->predicted[0].balancedness, .999);
  EXPECT_GT(plan->predicted[0].worst, .999);
  request.current = plan->placement;
  EXPECT_EQ(MakePlan(CostAwarePolicy(), request)->moves, 0);
}

TEST(CostAwarePolicy, UnequalWorkersKeepWithinTheirSlots) {
  // By proportion the small worker would get 13 slots of its 12, and in every layer of the other one's it has all
  // experts.
  PlanRequest request;
  request.topology = UniformTopology(2, 1, 1);
  request.topology.workers[0].capacity = {.slots = 54, .staging_slots = 2};
  request.topology.workers[1].capacity = {.slots = 14, .staging_slots = 2};
  request.scenarios = {{"load", 1, LoadMatrix(5, 10)}};
  std::vector<double>& tokens = request.scenarios[0].load.tokens;
  for (int32_t l = 0; l < 5; ++l) {
    for (int32_t e = 0; e < 10; ++e) tokens[10 * l + e] = l % 3 != 0 ? 10 : e < 2 ? 50 : 0;
  }
  request.replicas_per_worker = 6;
  const CostAwarePolicy cost_aware;
  const CraftPolicy craft;
  for (const PlannerPolicy* policy : std::initializer_list<const PlannerPolicy*>{&cost_aware, &craft}) {
    const auto plan = MakePlan(*policy, request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    // Of CRAFT's sizes none more is left.
    EXPECT_EQ(plan->placement.replicas.size(), policy == &craft ? 60u : 62u) << policy->name();
  }
}

TEST(CostAwarePolicy, ServesEnginesThatSplitEqually) {
  std::mt19937 random(4);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(2, 24)}};
  request.scenarios[0].load.tokens = RandomTokens(random, 2 * 24);
  request.topology = UniformTopology(4, 1, 2 * 7);
  const auto plan = MakePlan(CostAwarePolicy(20'000, CostAwarePolicy::Split::kEqual), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  for (const Replica& r : plan->placement.replicas) EXPECT_EQ(r.weight, 1u);
  const auto solved = MakePlan(CostAwarePolicy(), request);
  ASSERT_TRUE(solved.ok()) << solved.status();
  EXPECT_GT(plan->predicted[0].balancedness_equal_split, solved->predicted[0].balancedness_equal_split);
}

// Half of the workers twice as fast, or with more room, or both.
TEST(CostAwarePolicy, UsesUnequalWorkersByWhatTheyAre) {
  std::mt19937 random(5);
  for (int kind = 1; kind < 4; ++kind) {
    PlanRequest request;
    request.scenarios = {{"load", 1, LoadMatrix(3, 64)}};
    std::lognormal_distribution<double> skew(6, .8);
    for (double& t : request.scenarios[0].load.tokens) t = std::floor(skew(random));
    request.topology = UniformTopology(8, 1, 3 * 10);
    for (int w = 0; w < 8; w += 2) {
      if (kind & 1) request.topology.workers[w].speed = 2;
      if (kind & 2) request.topology.workers[w].capacity.slots += 3 * 4;
    }
    const auto plan = MakePlan(CostAwarePolicy(), request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_GT(plan->predicted[0].worst, .999) << kind;
    EXPECT_LE(plan->predicted[0].balancedness, plan->predicted[0].upper_bound + 1e-9);
    std::vector<int32_t> slots(8);
    for (const Replica& r : plan->placement.replicas) ++slots[r.worker];
    EXPECT_EQ(slots, (kind & 2 ? std::vector<int32_t>{42, 30, 42, 30, 42, 30, 42, 30} : std::vector<int32_t>(8, 30)));
    const auto equal = MakePlan(CostAwarePolicy(0, CostAwarePolicy::Split::kEqual), request);
    ASSERT_TRUE(equal.ok()) << equal.status();
    EXPECT_GT(equal->predicted[0].worst, .985) << kind;
    // What it is told to keep it keeps.
    request.current = plan->placement;
    EXPECT_EQ(MakePlan(CostAwarePolicy(), request)->moves, 0);
  }
}

TEST(CostAwarePolicy, KeepsWhatItCanUnderABudget) {
  std::mt19937 random(6);
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(4, 24)}};
  request.scenarios[0].load.tokens = RandomTokens(random, 4 * 24);
  request.topology = UniformTopology(4, 1, 24 + 3);
  request.replicas_per_worker = 3;
  const CostAwarePolicy policy(50'000);
  const auto plan = MakePlan(policy, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<int32_t> slots(4);
  for (const Replica& r : plan->placement.replicas) ++slots[r.worker];
  EXPECT_EQ(slots, std::vector<int32_t>(4, 27));
  request.current = plan->placement;
  EXPECT_EQ(MakePlan(policy, request)->moves, 0);
}

TEST(CostAwarePolicy, WorkersOfAnyRoomShareABudget) {
  PlanRequest request;
  request.scenarios = {{"load", 1, LoadMatrix(4, 24)}};
  std::mt19937 random(7);
  request.scenarios[0].load.tokens = RandomTokens(random, 4 * 24);
  request.topology = UniformTopology(4, 1, 30);
  request.topology.workers[1].capacity.slots = 2 + 11;
  request.replicas_per_worker = 1;
  const auto plan = MakePlan(CostAwarePolicy(20'000), request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<int32_t> slots(4);
  for (const Replica& r : plan->placement.replicas) ++slots[r.worker];
  EXPECT_EQ(slots, (std::vector<int32_t>{29, 11, 30, 30}));
}

TEST(CostAwarePolicy, OddButValid) {
  for (const auto& [workers, experts, slots] :
       std::vector<std::tuple<int32_t, int32_t, int32_t>>{{1, 1, 1}, {10000, 1, 1}, {1, 8, 8}, {3, 3, 1}, {2, 5, 3}}) {
    PlanRequest request;
    request.scenarios = {{"load", 1, LoadMatrix(2, experts)}};
    request.scenarios[0].load.layer(1)[0] = 5;
    request.topology = UniformTopology(workers, 1, 2 * slots);
    const auto plan = MakePlan(CostAwarePolicy(), request);
    ASSERT_TRUE(plan.ok()) << plan.status();
  }
}

}  // namespace
}  // namespace ballast
