#include "controller/planner/level.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

// Skewed, flat, with ties, zeros and giants.
std::vector<double> RandomTokens(std::mt19937& random, int32_t experts) {
  std::vector<double> tokens(experts);
  std::lognormal_distribution<double> skew(3, .1 + random() % 30 / 10.0);
  const auto kind = random() % 4;
  for (double& t : tokens) {
    t = kind == 0 ? static_cast<double>(random() % 4) : skew(random);
    if (kind == 1 && random() % 3 == 0) t = 0;
  }
  if (kind == 2) tokens[random() % experts] = 1e7;
  return tokens;
}

double Level(const Packs& packs, std::span<const double> tokens) {
  DispatchTable table = ToTable(packs, static_cast<int32_t>(tokens.size()));
  table.weight.assign(table.weight.size(), 1);
  const auto workers = static_cast<int32_t>(packs.size());
  return ScoreLayer(table, tokens, UniformTopology(workers, 1, 1)).balancedness_solved;
}

void CheckPacks(const Packs& packs, int32_t experts, int32_t slots) {
  std::set<int32_t> all;
  for (const auto& pack : packs) {
    ASSERT_EQ(static_cast<int32_t>(pack.size()), slots);
    ASSERT_EQ(std::set<int32_t>(pack.begin(), pack.end()).size(), pack.size());
    all.insert(pack.begin(), pack.end());
  }
  ASSERT_EQ(static_cast<int32_t>(all.size()), experts);
}

TEST(PlaceLevel, IsExactlyLevelWhereverOneSlotAWorkerIsSpare) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 3000; ++trial) {
    const int32_t workers = 1 + random() % 8;
    const int32_t slots = 2 + random() % 4;
    const int32_t experts = std::max(slots, 1 + static_cast<int32_t>(random() % (workers * (slots - 1))));
    if (experts > workers * (slots - 1)) continue;
    const std::vector<double> tokens = RandomTokens(random, experts);
    const Packs packs = PlaceLevel(tokens, workers, slots);
    CheckPacks(packs, experts, slots);
    if (HasFatalFailure()) FAIL() << "trial " << trial;
    if (std::accumulate(tokens.begin(), tokens.end(), 0.0) > 0) {
      ASSERT_GT(Level(packs, tokens), 1 - 1e-6) << trial;
    }
  }
}

TEST(PlaceLevel, WithFewSlotsIsSoundAndMostlyAboveGreedy) {
  std::mt19937 random(2);
  double ours = 0;
  double bound = 0;
  int trials = 0;
  for (int trial = 0; trial < 400; ++trial) {
    const int32_t workers = 1 + random() % 8;
    const int32_t slots = 1 + random() % 4;
    const int32_t least = std::max(slots, workers * (slots - 1) + 1);
    const int32_t experts = least + static_cast<int32_t>(random() % (workers * slots - least + 1));
    if (experts > workers * slots) continue;
    const std::vector<double> tokens = RandomTokens(random, experts);
    const Packs packs = PlaceLevel(tokens, workers, slots);
    CheckPacks(packs, experts, slots);
    if (HasFatalFailure()) FAIL() << "trial " << trial;
    if (std::accumulate(tokens.begin(), tokens.end(), 0.0) == 0) continue;
    ours += Level(packs, tokens);
    bound += UpperBound(tokens, slots * workers, workers);
    ++trials;
  }
  EXPECT_GT(ours / trials, .95 * bound / trials);
}

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
