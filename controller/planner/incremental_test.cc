#include "controller/planner/incremental.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "controller/planner/eplb.h"
#include "controller/planner/failure.h"
#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

LoadMatrix RandomLoad(std::mt19937& random, int32_t layers, int32_t experts, double skew) {
  LoadMatrix load(layers, experts);
  std::lognormal_distribution<double> tokens(5, skew);
  for (double& t : load.tokens) t = std::floor(tokens(random));
  return load;
}

PlanRequest Request(std::mt19937& random, int32_t layers, int32_t experts, int32_t workers, int32_t slots) {
  PlanRequest request;
  request.scenarios = {{"load", 1, RandomLoad(random, layers, experts, 1.2)}};
  request.topology = UniformTopology(workers, 2, slots * layers);
  request.expert_bytes = 1000;
  return request;
}

TEST(Increment, GainsMoreWithMoreMoves) {
  for (const auto policy_split : {EplbPolicy::Split::kEqual, EplbPolicy::Split::kSolved}) {
    const EplbPolicy policy(1, policy_split);
    std::mt19937 random(1);
    PlanRequest request = Request(random, 6, 32, 8, 5);
    request.current = MakePlan(policy, request)->placement;
    request.scenarios = {{"load", 1, RandomLoad(random, 6, 32, 1.2)}};
    double last = 0;
    for (const int64_t moves : {1, 2, 4, 8, 16, 32, 64}) {
      request.move_budget.max_moves = moves;
      const auto plan = MakePlan(policy, request);
      ASSERT_TRUE(plan.ok()) << plan.status();
      EXPECT_LE(plan->moves, moves);
      EXPECT_GE(plan->gain, last);
      EXPECT_GT(plan->gain, 0);
      last = plan->gain;
    }
    request.move_budget = {};
    const auto whole = MakePlan(policy, request);
    EXPECT_GT(last, 0.5 * whole->gain);
  }
}

TEST(PlanFailure, GivesEveryExpertAReplica) {
  std::mt19937 random(2);
  PlanRequest request = Request(random, 6, 32, 8, 5);
  request.current = MakePlan(EplbPolicy(), request)->placement;
  request.topology.workers.erase(request.topology.workers.begin() + 3);
  const auto failure = PlanFailure(request);
  ASSERT_TRUE(failure.ok()) << failure.status();
  EXPECT_GT(failure->lost.size(), 0u);
  EXPECT_TRUE(failure->without_replica.empty());
  EXPECT_EQ(failure->plan.moves, static_cast<int64_t>(failure->lost.size()));
  EXPECT_TRUE(Validate(failure->plan.placement).ok()) << Validate(failure->plan.placement);
  EXPECT_TRUE(failure->plan.gate.worth);
}

}  // namespace
}  // namespace ballast
